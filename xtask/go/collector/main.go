// Command collector is an OpenTelemetry Collector that receives OTLP and appends logs and metrics to a file, a line of OTLP's JSON for each
// message; without a path it drops them. The collector's own file exporter is not used: tests need a line that is complete before the
// message is acknowledged.
package main

import (
	"context"
	"log"
	"os"
	"sync"

	"go.opentelemetry.io/collector/component"
	"go.opentelemetry.io/collector/confmap"
	"go.opentelemetry.io/collector/confmap/provider/fileprovider"
	"go.opentelemetry.io/collector/consumer"
	"go.opentelemetry.io/collector/exporter"
	"go.opentelemetry.io/collector/otelcol"
	"go.opentelemetry.io/collector/pdata/plog"
	"go.opentelemetry.io/collector/pdata/pmetric"
	"go.opentelemetry.io/collector/receiver"
	"go.opentelemetry.io/collector/receiver/otlpreceiver"
	"go.opentelemetry.io/collector/service/telemetry/otelconftelemetry"
)

type config struct {
	Path string `mapstructure:"path"`
}

// lines appends to a file, one message at a time. Each signal has its own, for the same file.
type lines struct {
	path string
	lock sync.Mutex
	file *os.File
}

func (l *lines) Start(context.Context, component.Host) (err error) {
	if l.path == "" {
		return nil
	}
	l.file, err = os.OpenFile(l.path, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	return err
}

func (l *lines) Shutdown(context.Context) error {
	if l.file == nil {
		return nil
	}
	return l.file.Close()
}

func (l *lines) Capabilities() consumer.Capabilities {
	return consumer.Capabilities{}
}

func (l *lines) ConsumeLogs(_ context.Context, logs plog.Logs) error {
	return l.add(func() ([]byte, error) { return new(plog.JSONMarshaler).MarshalLogs(logs) })
}

func (l *lines) ConsumeMetrics(_ context.Context, metrics pmetric.Metrics) error {
	return l.add(func() ([]byte, error) { return new(pmetric.JSONMarshaler).MarshalMetrics(metrics) })
}

func (l *lines) add(marshal func() ([]byte, error)) error {
	if l.file == nil {
		return nil
	}
	line, err := marshal()
	if err != nil {
		return err
	}
	l.lock.Lock()
	defer l.lock.Unlock()
	_, err = l.file.Write(append(line, '\n'))
	return err
}

func newLines(_ context.Context, _ exporter.Settings, cfg component.Config) (exporter.Logs, error) {
	return &lines{path: cfg.(*config).Path}, nil
}

func newMetricLines(_ context.Context, _ exporter.Settings, cfg component.Config) (exporter.Metrics, error) {
	return &lines{path: cfg.(*config).Path}, nil
}

func factories() (otelcol.Factories, error) {
	receivers, err := otelcol.MakeFactoryMap[receiver.Factory](otlpreceiver.NewFactory())
	if err != nil {
		return otelcol.Factories{}, err
	}
	exporters, err := otelcol.MakeFactoryMap[exporter.Factory](exporter.NewFactory(
		component.MustNewType("lines"),
		func() component.Config { return &config{} },
		exporter.WithLogs(newLines, component.StabilityLevelStable),
		exporter.WithMetrics(newMetricLines, component.StabilityLevelStable),
	))
	return otelcol.Factories{Receivers: receivers, Exporters: exporters, Telemetry: otelconftelemetry.NewFactory()}, err
}

func main() {
	command := otelcol.NewCommand(otelcol.CollectorSettings{
		BuildInfo: component.BuildInfo{Command: "collector", Description: "OTLP to a file", Version: "test"},
		Factories: factories,
		ConfigProviderSettings: otelcol.ConfigProviderSettings{ResolverSettings: confmap.ResolverSettings{
			DefaultScheme:     "file",
			ProviderFactories: []confmap.ProviderFactory{fileprovider.NewFactory()},
		}},
	})
	if err := command.Execute(); err != nil {
		log.Fatal(err)
	}
}
