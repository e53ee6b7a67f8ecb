// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"os"
	"testing"

	"github.com/davit-dpu/davit/tests/vm"
)

func TestMain(m *testing.M) { os.Exit(vm.Main(m)) }
