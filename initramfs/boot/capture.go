// SPDX-License-Identifier: Apache-2.0

package boot

import (
	"context"
	"errors"
	"fmt"

	"github.com/davit-dpu/davit/firmware/measure"
)

// captures are files that are copied and hashed, one after the other, beside
// the boot's other work. That is most of the time that measuring takes, and
// most of the time before there is a TPM is spent on modules. What is measured
// later is what was read here, and still nothing is used before.
type captures map[string]<-chan captured

type captured struct {
	content *measure.Captured
	err     error
}

// stepCapture begins with all files that have a row of their own further down.
func stepCapture(_ context.Context, m *machine) (string, error) {
	m.captures = captureAhead(&m.term, m.cfg.Self, m.cfg.Agent, m.cfg.Vcard, m.cfg.CardConfig)
	return fmt.Sprintf("%d files, beside what follows", len(m.captures)), nil
}

func captureAhead(term *terminal, paths ...string) captures {
	all, results := captures{}, make([]chan captured, len(paths))
	for i, path := range paths {
		results[i] = make(chan captured, 1)
		all[path] = results[i]
	}
	guard("capture", term, func() {
		for i, path := range paths {
			c := captured{err: errors.New("not read: a panic came in between")}
			if err := caught("capture", term, func() { c.content, c.err = measure.Capture(path) }); err != nil {
				c = captured{err: err}
			}
			results[i] <- c
		}
	})
	return all
}

// take gives what was read of a file, once; a file that nobody read before is
// read now.
func (a captures) take(path string) (*measure.Captured, error) {
	result, ok := a[path]
	if !ok {
		return measure.Capture(path)
	}
	delete(a, path)
	c := <-result
	return c.content, c.err
}

// takeAll gives several, or none.
func (a captures) takeAll(paths []string) ([]*measure.Captured, error) {
	var out []*measure.Captured
	for _, path := range paths {
		c, err := a.take(path)
		if err != nil {
			for _, c := range out {
				err = errors.Join(err, c.Close())
			}
			return nil, err
		}
		out = append(out, c)
	}
	return out, nil
}

// drop gives up what nobody took.
func (a captures) drop() error {
	var err error
	for path, result := range a {
		delete(a, path)
		if c := <-result; c.content != nil {
			err = errors.Join(err, c.content.Close())
		}
	}
	return err
}
