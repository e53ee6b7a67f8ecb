// SPDX-License-Identifier: Apache-2.0

package layers

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// file is one Go file of the house.
type file struct {
	path    string // relative to the top
	folder  string
	test    bool
	ast     *ast.File
	text    string
	imports []string
}

func readHouse(t *testing.T) []file {
	t.Helper()
	top := filepath.Join("..", "..")
	var files []file
	fset := token.NewFileSet()
	err := filepath.WalkDir(top, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() && path != top && (strings.HasPrefix(d.Name(), ".") || d.Name() == "testdata" || d.Name() == "bin") {
			return fs.SkipDir
		}
		if d.IsDir() || filepath.Ext(path) != ".go" {
			return nil
		}
		text, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		parsed, err := parser.ParseFile(fset, path, text, parser.ParseComments)
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(top, path)
		if err != nil {
			return err
		}
		f := file{path: rel, folder: filepath.Dir(rel), test: strings.HasSuffix(rel, "_test.go"), ast: parsed, text: string(text)}
		for _, spec := range parsed.Imports {
			name, err := strconv.Unquote(spec.Path.Value)
			if err != nil {
				return err
			}
			f.imports = append(f.imports, name)
		}
		files = append(files, f)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(files) < 20 {
		t.Fatalf("found only %d Go files: is the test looking at the house?", len(files))
	}
	return files
}

// family finds the innermost family of a folder.
func family(folder string) (Family, bool) {
	best, found := Family{}, false
	for _, f := range Families() {
		if (folder == f.Folder || strings.HasPrefix(folder, f.Folder+"/")) && len(f.Folder) > len(best.Folder) {
			best, found = f, true
		}
	}
	return best, found
}

func TestImportsGoDown(t *testing.T) {
	for _, f := range readHouse(t) {
		from, ok := family(f.folder)
		if !ok {
			t.Errorf("%s: its folder is in no family; give it a floor in floors.go", f.path)
			continue
		}
		for _, imp := range f.imports {
			folder, ours := strings.CutPrefix(imp, Module+"/")
			if !ours {
				continue
			}
			to, ok := family(folder)
			switch {
			case !ok:
				t.Errorf("%s imports %s, which is in no family", f.path, imp)
			case to.Folder == from.Folder, to.Floor < from.Floor:
			case Allowances()[[2]string{from.Folder, to.Folder}] != "":
			default:
				t.Errorf("%s (floor %d) imports %s (floor %d): imports go down only", f.path, from.Floor, imp, to.Floor)
			}
		}
	}
}

func TestEveryFamilyIsThere(t *testing.T) {
	for _, f := range Families() {
		if st, err := os.Stat(filepath.Join("..", "..", f.Folder)); err != nil || !st.IsDir() {
			t.Errorf("family %s has no folder", f.Folder)
		}
	}
}

func TestGuestsAreInvited(t *testing.T) {
	used := map[string]bool{}
	for _, f := range readHouse(t) {
		for _, imp := range f.imports {
			first, _, _ := strings.Cut(imp, "/")
			if !strings.Contains(first, ".") || imp == Module || strings.HasPrefix(imp, Module+"/") {
				continue
			}
			guest := ""
			for g := range Guests() {
				if imp == g || strings.HasPrefix(imp, g+"/") {
					guest = g
				}
			}
			if guest == "" {
				t.Errorf("%s imports %s, which is no guest: prefer the standard library, or invite it with a reason", f.path, imp)
			}
			used[guest] = true
		}
	}
	for g := range Guests() {
		if !used[g] {
			t.Errorf("guest %s is not used any more", g)
		}
	}
}

func TestUnsafeStaysInItsRooms(t *testing.T) {
	for _, f := range readHouse(t) {
		in, _ := family(f.folder)
		if slices.Contains(f.imports, "unsafe") && !slices.Contains(UnsafeRooms(), in.Folder) {
			t.Errorf("%s imports unsafe", f.path)
		}
	}
}

func TestEveryPackageSaysWhatItIs(t *testing.T) {
	documented, seen := map[string]bool{}, map[string]bool{}
	for _, f := range readHouse(t) {
		if f.test {
			continue
		}
		seen[f.folder] = true
		if filepath.Base(f.path) == "doc.go" && f.ast.Doc != nil {
			documented[f.folder] = true
		}
	}
	for folder := range seen {
		if !documented[folder] {
			t.Errorf("%s has no doc.go with a package comment", folder)
		}
	}
}

func TestEveryExportedNameIsDocumented(t *testing.T) {
	for _, f := range readHouse(t) {
		if f.test || f.ast.Name.Name == "main" {
			continue
		}
		for _, decl := range f.ast.Decls {
			for _, name := range undocumented(decl) {
				t.Errorf("%s: %s has no doc comment", f.path, name)
			}
		}
	}
}

func undocumented(decl ast.Decl) []string {
	var names []string
	switch d := decl.(type) {
	case *ast.FuncDecl:
		if d.Name.IsExported() && d.Doc == nil && (d.Recv == nil || exportedReceiver(d.Recv)) {
			names = append(names, d.Name.Name)
		}
	case *ast.GenDecl:
		for _, s := range d.Specs {
			switch s := s.(type) {
			case *ast.TypeSpec:
				if s.Name.IsExported() && s.Doc == nil && d.Doc == nil {
					names = append(names, s.Name.Name)
				}
			case *ast.ValueSpec:
				for _, n := range s.Names {
					if n.IsExported() && s.Doc == nil && s.Comment == nil && d.Doc == nil {
						names = append(names, n.Name)
					}
				}
			}
		}
	}
	return names
}

func exportedReceiver(recv *ast.FieldList) bool {
	typ := recv.List[0].Type
	if star, ok := typ.(*ast.StarExpr); ok {
		typ = star.X
	}
	if index, ok := typ.(*ast.IndexExpr); ok {
		typ = index.X
	}
	id, ok := typ.(*ast.Ident)
	return ok && id.IsExported()
}

func TestEveryFileIsLicensedAndPlain(t *testing.T) {
	for _, f := range readHouse(t) {
		if !strings.HasPrefix(f.text, "// SPDX-License-Identifier: Apache-2.0\n") {
			t.Errorf("%s does not begin with the licence line", f.path)
		}
		if lines := strings.Count(f.text, "\n"); lines > 600 {
			t.Errorf("%s has %d lines; 600 is the most", f.path, lines)
		}
		for _, decl := range f.ast.Decls {
			if fn, ok := decl.(*ast.FuncDecl); ok && fn.Recv == nil && fn.Name.Name == "init" {
				t.Errorf("%s has a func init: nothing runs because it is imported", f.path)
			}
		}
	}
}

func TestModuleReplacesNothing(t *testing.T) {
	text, err := os.ReadFile(filepath.Join("..", "..", "go.mod"))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		if strings.HasPrefix(strings.TrimSpace(line), "replace") {
			t.Errorf("go.mod: %s", strings.TrimSpace(line))
		}
	}
}
