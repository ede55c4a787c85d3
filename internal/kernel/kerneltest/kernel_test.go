package kerneltest_test

import (
	"testing"

	"fabric/internal/kernel"
	"fabric/internal/kernel/kerneltest"
)

func TestModelConforms(t *testing.T) {
	kerneltest.Conformance(t,
		func(*testing.T) kerneltest.World { return kerneltest.New() },
		func(_ *testing.T, w kerneltest.World) kernel.Host { return w })
}
