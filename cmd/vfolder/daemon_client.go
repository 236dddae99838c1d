package main

import (
	"os"

	"github.com/vfolder/vfolder/config"
	"github.com/vfolder/vfolder/control"
)

// dialDaemon makes a client of the user's daemon. Nothing is sent yet.
func dialDaemon() (*control.Client, error) {
	if socket := os.Getenv("VFOLDER_SOCKET"); socket != "" {
		return control.Dial(socket), nil
	}
	cfg, err := config.Load(nil)
	if err != nil {
		return nil, err
	}
	return control.Dial(cfg.Daemon.Socket()), nil
}
