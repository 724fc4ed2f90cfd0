// Asks through Go's net package: by its own resolver or, with GODEBUG=netdns=cgo, by the C library.
package main

import (
	"fmt"
	"net"
	"os"
)

func main() {
	lookup := net.LookupHost
	if os.Args[1] == "TXT" {
		lookup = net.LookupTXT
	}
	found, err := lookup(os.Args[2])
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	fmt.Println(found)
}
