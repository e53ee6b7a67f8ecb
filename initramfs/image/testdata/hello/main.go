// SPDX-License-Identifier: Apache-2.0

// Command hello is a program of test images.
package main

import "fmt"

func main() { fmt.Println("hello from the test image") }
