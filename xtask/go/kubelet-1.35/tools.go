//go:build tools

// Package tools names the program that xtask builds from this module.
package tools

import _ "k8s.io/kubernetes/cmd/kubelet"
