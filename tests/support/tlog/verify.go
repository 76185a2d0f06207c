// Verifies an exported audit log with Go's reference implementation of transparency logs, and none of our code:
//
//	verify DIR KEY
//
// The checkpoint's signature, then the tree made anew from the entries alone: its root is the signed one, and every tile
// file is what Go makes of that tree. Exits 1 with words when something is wrong. (tlog.TileHashReader would check tiles
// without the entries, but not all of them before golang.org/x/mod 0.40: CVE-2026-56865. Debian 12 has 0.7.)
package main

import (
	"bytes"
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
)

const height = 8 // of a tile, in C2SP tlog-tiles

func die(format string, words ...interface{}) {
	fmt.Fprintf(os.Stderr, format+"\n", words...)
	os.Exit(1)
}

func read(dir, path string) []byte {
	data, err := os.ReadFile(filepath.Join(dir, path))
	if err != nil {
		die("%s: %v", path, err)
	}
	return data
}

// place is where tlog-tiles keeps a tile: tile/<L>/<N> instead of Go's tile/<H>/<L>/<N>.
func place(tile tlog.Tile, kind string) string {
	return strings.Replace(tile.Path(), fmt.Sprintf("tile/%d/%d/", tile.H, tile.L), "tile/"+kind+"/", 1)
}

func checkpoint(dir, key string) tlog.Tree {
	verifier, err := note.NewVerifier(key)
	if err != nil {
		die("key: %v", err)
	}
	opened, err := note.Open(read(dir, "checkpoint"), note.VerifierList(verifier))
	if err != nil {
		die("checkpoint: %v", err)
	}
	lines := strings.Split(opened.Text, "\n")
	if len(lines) < 4 || lines[0] != verifier.Name() {
		die("checkpoint: not of %s", verifier.Name())
	}
	size, err := strconv.ParseInt(lines[1], 10, 64)
	if err != nil {
		die("checkpoint: %v", err)
	}
	root, err := base64.StdEncoding.DecodeString(lines[2])
	if err != nil || len(root) != tlog.HashSize {
		die("checkpoint: no root")
	}
	tree := tlog.Tree{N: size}
	copy(tree.Hash[:], root)
	return tree
}

func bundle(dir, path string, width int) [][]byte {
	data := read(dir, path)
	var entries [][]byte
	for len(data) > 0 {
		if len(data) < 2 || len(data)-2 < int(binary.BigEndian.Uint16(data)) {
			die("%s: ends inside an entry", path)
		}
		end := 2 + int(binary.BigEndian.Uint16(data))
		entries = append(entries, data[2:end])
		data = data[end:]
	}
	if len(entries) != width {
		die("%s: %d entries instead of %d", path, len(entries), width)
	}
	return entries
}

func main() {
	if len(os.Args) != 3 {
		die("usage: verify DIR KEY")
	}
	dir := os.Args[1]
	tree := checkpoint(dir, os.Args[2])

	var stored []tlog.Hash
	reader := tlog.HashReaderFunc(func(indexes []int64) ([]tlog.Hash, error) {
		var found []tlog.Hash
		for _, index := range indexes {
			found = append(found, stored[index])
		}
		return found, nil
	})
	var tiles []tlog.Tile
	for _, tile := range tlog.NewTiles(height, 0, tree.N) { // with every partial tile on the way to this size
		if tile.W == 1<<height || int64(tile.W) == tree.N>>(height*uint(tile.L))%(1<<height) {
			tiles = append(tiles, tile)
		}
	}
	count := int64(0)
	for _, tile := range tiles {
		if tile.L != 0 {
			continue
		}
		for _, entry := range bundle(dir, place(tile, "entries"), tile.W) {
			hashes, err := tlog.StoredHashes(count, entry, reader)
			if err != nil {
				die("entry %d: %v", count, err)
			}
			stored = append(stored, hashes...)
			count++
		}
	}
	root, err := tlog.TreeHash(tree.N, reader)
	if err != nil {
		die("%v", err)
	}
	signed := root == tree.Hash
	if tree.N == 0 { // of which Go's tree hash says nothing; RFC 6962 section 2.1: SHA-256 of nothing
		signed = tree.Hash.String() == "47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU="
	}
	for _, tile := range tiles {
		path := place(tile, strconv.Itoa(tile.L))
		wanted, err := tlog.ReadTileData(tile, reader)
		if err != nil {
			die("%v", err)
		}
		if !bytes.Equal(wanted, read(dir, path)) {
			die("%s isn't made of the entries", path)
		}
	}
	if !signed {
		die("the entries' root isn't the signed one")
	}
	fmt.Printf("%d entries verified\n", count)
}
