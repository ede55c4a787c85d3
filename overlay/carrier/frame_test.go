package carrier

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"testing"
)

func TestReadFrame(t *testing.T) {
	large := bytes.Repeat([]byte{7}, MaxMessage)
	for _, c := range []struct {
		name  string
		bytes []byte
		want  []byte
		err   error
	}{
		{"one byte", []byte{0, 1, 9}, []byte{9}, nil},
		{"largest", append([]byte{0xff, 0xff}, large...), large, nil},
		{"nothing", nil, nil, io.EOF},
		{"half a head", []byte{0}, nil, io.ErrUnexpectedEOF},
		{"head only", []byte{0, 1}, nil, io.ErrUnexpectedEOF},
		{"too short", []byte{0, 3, 1, 2}, nil, io.ErrUnexpectedEOF},
		{"empty", []byte{0, 0, 1}, nil, errEmptyFrame},
	} {
		got, err := readFrame(bufio.NewReader(bytes.NewReader(c.bytes)), nil)
		if !errors.Is(err, c.err) || !bytes.Equal(got, c.want) {
			t.Errorf("%s: %d bytes, %v; want %d, %v", c.name, len(got), err, len(c.want), c.err)
		}
	}
}

func TestWriteFrame(t *testing.T) {
	for _, n := range []int{0, MaxMessage + 1} {
		if err := writeFrame(bufio.NewWriter(io.Discard), make([]byte, n)); err == nil {
			t.Errorf("a message of %d bytes was taken", n)
		}
	}
	// Frames that end around the end of the writer's room.
	for n := 4080; n < 4100; n++ {
		var b bytes.Buffer
		w := bufio.NewWriterSize(&b, 4096)
		first, second := bytes.Repeat([]byte{1}, n), []byte{2, 3}
		if err := errors.Join(writeFrame(w, first), writeFrame(w, second), w.Flush()); err != nil {
			t.Fatal(err)
		}
		r := bufio.NewReader(&b)
		got1, err1 := readFrame(r, nil)
		got2, err2 := readFrame(r, nil)
		if err := errors.Join(err1, err2); err != nil || !bytes.Equal(got1, first) || !bytes.Equal(got2, second) {
			t.Fatalf("%d: %d and %d bytes, %v", n, len(got1), len(got2), err)
		}
	}
}

// FuzzFrame: whatever comes over the socket, reading ends, each message is 1–65535 bytes, and written again gives what was read.
func FuzzFrame(f *testing.F) {
	f.Add([]byte{0, 1, 9, 0, 2, 1, 2})
	f.Add([]byte{0, 0})
	f.Add([]byte{0xff, 0xff, 1})
	f.Fuzz(func(t *testing.T, in []byte) {
		r := bufio.NewReaderSize(bytes.NewReader(in), 16)
		var out bytes.Buffer
		w := bufio.NewWriter(&out)
		buf := make([]byte, 0, 8)
		var err error
		for {
			if buf, err = readFrame(r, buf); err != nil {
				break
			}
			if len(buf) == 0 || len(buf) > MaxMessage {
				t.Fatalf("message of %d bytes", len(buf))
			}
			if err := writeFrame(w, buf); err != nil {
				t.Fatal(err)
			}
		}
		if err := w.Flush(); err != nil {
			t.Fatal(err)
		}
		if !bytes.HasPrefix(in, out.Bytes()) {
			t.Fatalf("wrote %x of %x", out.Bytes(), in)
		}
		if errors.Is(err, io.EOF) && out.Len() != len(in) {
			t.Fatalf("end was reported clean, but %d of %d bytes are left", len(in)-out.Len(), len(in))
		}
	})
}
