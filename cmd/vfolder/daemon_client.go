package main

import (
	"context"

	"github.com/vfolder/vfolder/config"
	"github.com/vfolder/vfolder/control"
	"github.com/vfolder/vfolder/launcher"
)

func init() {
	dialFolders = func(ctx context.Context) (launcher.Folders, error) {
		client, err := dialDaemon()
		if err != nil {
			return nil, err
		}
		// Asking first tells a missing daemon from a missing folder before a
		// session is made.
		if _, err := client.Version(ctx); err != nil {
			_ = client.Close()
			return nil, err
		}
		return client, nil
	}
}

// dialDaemon makes a client of the user's daemon. Nothing is sent yet.
func dialDaemon() (*control.Client, error) {
	cfg, err := config.Load(nil)
	if err != nil {
		return nil, err
	}
	return control.Dial(cfg.Daemon.Socket()), nil
}
