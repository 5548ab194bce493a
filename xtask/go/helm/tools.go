//go:build tools

// Package tools names the programs that check the chart, so that their modules are pinned in go.mod and go.sum.
package tools

import (
	_ "github.com/yannh/kubeconform/cmd/kubeconform"
	_ "helm.sh/helm/v4/cmd/helm"
)
