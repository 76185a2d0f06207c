// A witness (C2SP tlog-witness) over Go's reference implementation of transparency logs, and none of our code:
//
//	witness NAME SEED LOGKEY
//
// SEED is an Ed25519 seed in hex. Prints "URL KEY" when it listens; remembers heads until it ends.
package main

import (
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
)

type witness struct {
	name  string
	key   ed25519.PrivateKey
	log   note.Verifier
	mutex sync.Mutex
	tree  tlog.Tree
}

func (w *witness) public() []byte { return w.key.Public().(ed25519.PublicKey) }

func (w *witness) id() []byte {
	sum := sha256.Sum256([]byte(w.name + "\n\x04" + string(w.public())))
	return sum[:4]
}

func (w *witness) verifierKey() string {
	return fmt.Sprintf("%s+%x+%s", w.name, w.id(), base64.StdEncoding.EncodeToString(append([]byte{4}, w.public()...)))
}

func (w *witness) cosign(text string, now uint64) string {
	message := fmt.Sprintf("cosignature/v1\ntime %d\n%s", now, text)
	raw := append(w.id(), make([]byte, 8)...)
	binary.BigEndian.PutUint64(raw[4:], now)
	raw = append(raw, ed25519.Sign(w.key, []byte(message))...)
	return fmt.Sprintf("\u2014 %s %s\n", w.name, base64.StdEncoding.EncodeToString(raw))
}

func (w *witness) conflict(answer http.ResponseWriter) {
	answer.Header().Set("Content-Type", "text/x.tlog.size")
	answer.WriteHeader(http.StatusConflict)
	fmt.Fprintf(answer, "%d\n", w.tree.N)
}

func (w *witness) ServeHTTP(answer http.ResponseWriter, request *http.Request) {
	if request.Method != "POST" || request.URL.Path != "/w/add-checkpoint" {
		http.Error(answer, "no such call", http.StatusNotFound)
		return
	}
	body, err := io.ReadAll(request.Body)
	if err != nil {
		return
	}
	parts := strings.SplitN(string(body), "\n\n", 2)
	lines := strings.Split(parts[0], "\n")
	if len(parts) != 2 || !strings.HasPrefix(lines[0], "old ") || len(lines) > 64 {
		http.Error(answer, "no old size", http.StatusBadRequest)
		return
	}
	old, err := strconv.ParseInt(lines[0][4:], 10, 64)
	if err != nil {
		http.Error(answer, "no old size", http.StatusBadRequest)
		return
	}
	var proof tlog.TreeProof
	for _, line := range lines[1:] {
		hash, err := tlog.ParseHash(line)
		if err != nil {
			http.Error(answer, "no hash", http.StatusBadRequest)
			return
		}
		proof = append(proof, hash)
	}
	if !strings.HasPrefix(parts[1], w.log.Name()+"\n") {
		http.Error(answer, "unknown log", http.StatusNotFound)
		return
	}
	opened, err := note.Open([]byte(parts[1]), note.VerifierList(w.log))
	if err != nil {
		http.Error(answer, err.Error(), http.StatusForbidden)
		return
	}
	head := strings.Split(opened.Text, "\n")
	size, err := strconv.ParseInt(head[1], 10, 64)
	if err != nil || old > size {
		http.Error(answer, "no size", http.StatusBadRequest)
		return
	}
	root, err := tlog.ParseHash(head[2])
	if err != nil {
		http.Error(answer, "no root", http.StatusBadRequest)
		return
	}
	w.mutex.Lock()
	defer w.mutex.Unlock()
	if old != w.tree.N || (old == size && old > 0 && root != w.tree.Hash) {
		w.conflict(answer)
		return
	}
	if old == 0 && len(proof) > 0 || old == size && len(proof) > 0 {
		http.Error(answer, "a proof of nothing", http.StatusUnprocessableEntity)
		return
	}
	if old > 0 && old < size {
		if err := tlog.CheckTree(proof, size, root, old, w.tree.Hash); err != nil {
			http.Error(answer, err.Error(), http.StatusUnprocessableEntity)
			return
		}
	}
	w.tree = tlog.Tree{N: size, Hash: root}
	io.WriteString(answer, w.cosign(opened.Text, uint64(time.Now().Unix())))
}

func main() {
	seed, err := hex.DecodeString(os.Args[2])
	if err != nil || len(seed) != ed25519.SeedSize {
		panic("no seed")
	}
	log, err := note.NewVerifier(os.Args[3])
	if err != nil {
		panic(err)
	}
	w := &witness{name: os.Args[1], key: ed25519.NewKeyFromSeed(seed), log: log}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		panic(err)
	}
	fmt.Printf("http://%s/w %s\n", listener.Addr(), w.verifierKey())
	panic(http.Serve(listener, w))
}
