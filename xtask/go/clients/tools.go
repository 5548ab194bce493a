//go:build tools

// Package tools pins grpcurl and the generators of Go code for gRPC: this module's go.mod and go.sum name them and all they are made of.
package tools

import (
	_ "github.com/fullstorydev/grpcurl/cmd/grpcurl"
	_ "google.golang.org/grpc/cmd/protoc-gen-go-grpc"
	_ "google.golang.org/protobuf/cmd/protoc-gen-go"
)
