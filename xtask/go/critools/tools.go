//go:build tools

// Package tools pins crictl and critest: this module's go.mod and go.sum name them and all they are made of.
package tools

import (
	_ "sigs.k8s.io/cri-tools/cmd/crictl"
	_ "sigs.k8s.io/cri-tools/cmd/critest"
)
