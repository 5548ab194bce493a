//go:build tools

// Package tools names the program that makes packages, so that its modules are pinned in go.mod and go.sum.
package tools

import _ "github.com/goreleaser/nfpm/v2/cmd/nfpm"
