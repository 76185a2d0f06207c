// Verifies an exported audit log with Go's reference implementation of transparency logs, and none of our code:
//
//	verify DIR KEY
//
// The checkpoint's signature, every tile and every entry against the signed root. Exits 1 with words when one is wrong.
package main

import (
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"io/ioutil"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
)

const height = 8 // of a tile, in C2SP tlog-tiles

// folder reads tiles where tlog-tiles keeps them: tile/<L>/<N> instead of Go's tile/<H>/<L>/<N>.
type folder string

func (dir folder) Height() int { return height }

func (dir folder) SaveTiles([]tlog.Tile, [][]byte) {}

func (dir folder) ReadTiles(tiles []tlog.Tile) ([][]byte, error) {
	var found [][]byte
	for _, tile := range tiles {
		path := strings.Replace(tile.Path(), "tile/8/", "tile/", 1)
		data, err := ioutil.ReadFile(filepath.Join(string(dir), path))
		if err != nil {
			return nil, err
		}
		found = append(found, data)
	}
	return found, nil
}

func die(format string, words ...interface{}) {
	fmt.Fprintf(os.Stderr, format+"\n", words...)
	os.Exit(1)
}

func checkpoint(dir, key string) tlog.Tree {
	verifier, err := note.NewVerifier(key)
	if err != nil {
		die("key: %v", err)
	}
	data, err := ioutil.ReadFile(filepath.Join(dir, "checkpoint"))
	if err != nil {
		die("checkpoint: %v", err)
	}
	opened, err := note.Open(data, note.VerifierList(verifier))
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

func bundle(dir string, index int64, width int) [][]byte {
	// Go's path of a tile of level 0 has the number and the width just as a bundle's has.
	path := strings.Replace(tlog.Tile{H: height, L: 0, N: index, W: width}.Path(), "tile/8/0/", "tile/entries/", 1)
	data, err := ioutil.ReadFile(filepath.Join(dir, path))
	if err != nil {
		die("%v", err)
	}
	var entries [][]byte
	for len(data) > 0 {
		if len(data) < 2 || len(data)-2 < int(binary.BigEndian.Uint16(data)) {
			die("%s: ends inside an entry", path)
		}
		size := int(binary.BigEndian.Uint16(data))
		entries = append(entries, data[2:2+size])
		data = data[2+size:]
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
	reader := tlog.TileHashReader(tree, folder(dir))
	for start := int64(0); start < tree.N; start += 1 << height {
		width := tree.N - start
		if width > 1<<height {
			width = 1 << height
		}
		var indexes []int64
		for at := int64(0); at < width; at++ {
			indexes = append(indexes, tlog.StoredHashIndex(0, start+at))
		}
		hashes, err := reader.ReadHashes(indexes) // each tile checked against the root
		if err != nil {
			die("%v", err)
		}
		for at, entry := range bundle(dir, start>>height, int(width)) {
			if tlog.RecordHash(entry) != hashes[at] {
				die("entry %d isn't in the signed tree", start+int64(at))
			}
		}
	}
	fmt.Printf("%d entries verified\n", tree.N)
}
