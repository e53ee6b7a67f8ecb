// SPDX-License-Identifier: Apache-2.0

package packages

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// ManufactureTPM makes the state of a new TPM 2.0 in stateDir, with an RSA
// endorsement key and its certificate (NV index 0x01c00002, TCG EK Credential
// Profile section 2.2), as a TPM's maker would. The maker's certification
// authority lives in caDir, where it is made at first use: issuercert.pem
// certifies the endorsement keys. Both folders are made, private to the user;
// nothing is written elsewhere. PCRs are SHA-256. A stateDir that has a TPM
// already is an error.
func (s *Set) ManufactureTPM(ctx context.Context, stateDir, caDir string) error {
	var err error
	if stateDir, err = filepath.Abs(stateDir); err != nil {
		return fmt.Errorf("manufacture tpm: %w", err)
	}
	if caDir, err = filepath.Abs(caDir); err != nil {
		return fmt.Errorf("manufacture tpm: %w", err)
	}
	for _, d := range []string{stateDir, caDir} {
		if strings.ContainsAny(d, "\n\r") {
			return fmt.Errorf("manufacture tpm: line break in folder name %q", d)
		}
		if err := os.MkdirAll(d, 0o700); err != nil {
			return fmt.Errorf("manufacture tpm: %w", err)
		}
	}
	conf, err := s.writeTPMConfig(caDir)
	if err != nil {
		return err
	}
	args := []string{
		"--tpm2", "--tpmstate", stateDir, "--config", conf,
		"--create-ek-cert", "--lock-nvram", "--pcr-banks", "sha256", "--not-overwrite",
	}
	if os.Geteuid() == 0 {
		// Else root would become a user who need not exist.
		args = append(args, "--runas", "root")
	}
	cmd := s.CommandContext(ctx, "swtpm_setup", args...)
	if _, err := os.Stat(filepath.Join(stateDir, "tpm2-00.permall")); err == nil {
		return fmt.Errorf("manufacture tpm: %s has one already", stateDir)
	}
	out, err := cmd.CombinedOutput()
	if err != nil {
		return fmt.Errorf("manufacture tpm: swtpm_setup: %w: %s", err, summary(string(out)))
	}
	return nil
}

// writeTPMConfig writes swtpm_setup's and swtpm_localca's configuration into
// caDir, and gives the former's path.
func (s *Set) writeTPMConfig(caDir string) (string, error) {
	localca, err := s.Tool("swtpm_localca")
	if err != nil {
		return "", err
	}
	in := func(name string) string { return filepath.Join(caDir, name) }
	files := []struct{ name, content string }{
		{"localca.conf", "statedir = " + caDir + "\nsigningkey = " + in("signkey.pem") +
			"\nissuercert = " + in("issuercert.pem") + "\ncertserial = " + in("certserial") + "\n"},
		{"localca.options", "--platform-manufacturer Davit\n--platform-version 1.0\n--platform-model Emulated\n"},
		{"setup.conf", "create_certs_tool = " + localca + "\ncreate_certs_tool_config = " + in("localca.conf") +
			"\ncreate_certs_tool_options = " + in("localca.options") + "\nactive_pcr_banks = sha256\n"},
	}
	for _, f := range files {
		if err := os.WriteFile(in(f.name), []byte(f.content), 0o600); err != nil {
			return "", fmt.Errorf("manufacture tpm: %w", err)
		}
	}
	return in("setup.conf"), nil
}
