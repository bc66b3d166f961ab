"""What a run needs of a Kubernetes cluster: where its pods go, multi-node jobs, model servers."""
