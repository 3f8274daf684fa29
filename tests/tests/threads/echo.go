// Eight servers and two hundred goroutines that connect to them, with deadlines and cancelled dials.
package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"runtime"
	"sync"
	"time"
)

func check(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func serve(listener net.Listener) {
	for {
		connection, err := listener.Accept()
		if err != nil {
			return
		}
		go func() {
			_, err := io.Copy(connection, connection)
			check(err)
			connection.Close()
		}()
	}
}

func client(address string, size int) {
	connection, err := net.Dial("tcp", address)
	check(err)
	defer connection.Close()
	check(connection.SetDeadline(time.Now().Add(30 * time.Second)))
	check(connection.(*net.TCPConn).SetNoDelay(true))
	sent := bytes.Repeat([]byte{byte(size)}, size)
	go func() {
		_, err := connection.Write(sent)
		check(err)
		check(connection.(*net.TCPConn).CloseWrite())
	}()
	received, err := io.ReadAll(connection)
	check(err)
	if !bytes.Equal(sent, received) {
		check(fmt.Errorf("%d bytes went, %d came back", len(sent), len(received)))
	}
}

func main() {
	runtime.GOMAXPROCS(8)
	var listeners []net.Listener
	for n := 0; n < 8; n++ {
		address := "127.0.0.1:0"
		if n%2 == 1 {
			address = "[::1]:0"
		}
		listener, err := net.Listen("tcp", address)
		check(err)
		listeners = append(listeners, listener)
		go serve(listener)
	}
	var group sync.WaitGroup
	for n := 0; n < 200; n++ {
		group.Add(1)
		go func(n int) {
			defer group.Done()
			for round := 0; round < 3; round++ {
				client(listeners[n%len(listeners)].Addr().String(), 1+n*500)
			}
		}(n)
	}
	group.Wait()

	// A read that times out, and a dial that was cancelled before it began.
	silent, err := net.Listen("tcp", "127.0.0.1:0")
	check(err)
	connection, err := net.Dial("tcp", silent.Addr().String())
	check(err)
	check(connection.SetReadDeadline(time.Now().Add(20 * time.Millisecond)))
	_, err = connection.Read(make([]byte, 1))
	if timeout, ok := err.(net.Error); !ok || !timeout.Timeout() {
		check(fmt.Errorf("expected a timeout, not %v", err))
	}
	cancelled, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := (&net.Dialer{}).DialContext(cancelled, "tcp", silent.Addr().String()); err == nil {
		check(fmt.Errorf("a cancelled dial connected"))
	}
	for _, listener := range listeners {
		address := listener.Addr().String()
		listener.Close()
		if _, err := net.Dial("tcp", address); err == nil {
			check(fmt.Errorf("a closed listener accepted"))
		}
	}
	fmt.Println("good")
}
