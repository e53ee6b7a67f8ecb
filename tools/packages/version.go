// SPDX-License-Identifier: Apache-2.0

package packages

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
)

// Version is the upstream version of a program: up to four numbers, missing
// ones being zero.
type Version [4]int

// errNoVersion says that a text has no version in it.
var errNoVersion = errors.New("no version number found")

// maxVersionPart bounds one number of a version.
const maxVersionPart = 1 << 30

// maxVersionOutput bounds how much of a program's answer is looked at.
const maxVersionOutput = 4096

// String gives the version without its trailing zeros, but at least
// two numbers.
func (v Version) String() string {
	n := len(v)
	for n > 2 && v[n-1] == 0 {
		n--
	}
	parts := make([]string, n)
	for i := range parts {
		parts[i] = strconv.Itoa(v[i])
	}
	return strings.Join(parts, ".")
}

// Less says whether v comes before w.
func (v Version) Less(w Version) bool {
	for i := range v {
		if v[i] != w[i] {
			return v[i] < w[i]
		}
	}
	return false
}

// ParseToolVersion finds the version in what a program prints for --version:
// the first word that is made of numbers joined by dots, after an optional "v"
// or "key=", and before an optional suffix such as "-rc1" or "+ds". It reads at
// most 4096 bytes.
func ParseToolVersion(output string) (Version, error) {
	if len(output) > maxVersionOutput {
		output = output[:maxVersionOutput]
	}
	for word := range strings.FieldsSeq(output) {
		// tpm2-tools print version="5.4".
		word = strings.Trim(word[strings.LastIndexByte(word, '=')+1:], `"(),;:`)
		word = strings.TrimPrefix(word, "v")
		if !strings.Contains(word, ".") {
			continue
		}
		if v, err := parseNumbers(word); err == nil {
			return v, nil
		}
	}
	return Version{}, errNoVersion
}

// ParsePackageVersion gives the upstream version in a Debian package version
// (deb-version(7)): [epoch:]upstream[-revision].
func ParsePackageVersion(s string) (Version, error) {
	if epoch, rest, ok := strings.Cut(s, ":"); ok {
		if _, err := strconv.ParseUint(epoch, 10, 31); err != nil {
			return Version{}, fmt.Errorf("package version %q: epoch is not a number", s)
		}
		s = rest
	}
	v, err := parseNumbers(s)
	if err != nil {
		return Version{}, fmt.Errorf("package version %q: %w", s, err)
	}
	return v, nil
}

// parseNumbers reads the numbers at the start of s; what follows must not
// continue a number with a letter, as 10abc would.
func parseNumbers(s string) (Version, error) {
	var v Version
	for i := 0; ; i++ {
		digits := len(s) - len(strings.TrimLeft(s, "0123456789"))
		if digits == 0 {
			return Version{}, errNoVersion
		}
		n, err := strconv.Atoi(s[:digits])
		if err != nil || n > maxVersionPart {
			return Version{}, errNoVersion
		}
		if i < len(v) {
			v[i] = n
		}
		s = s[digits:]
		if len(s) < 2 || s[0] != '.' || s[1] < '0' || s[1] > '9' {
			break
		}
		s = s[1:]
	}
	if s != "" && !strings.ContainsRune("-+~.,_ )", rune(s[0])) && !strings.HasPrefix(s, "rc") {
		return Version{}, errNoVersion
	}
	return v, nil
}
