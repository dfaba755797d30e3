package main

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"

	"github.com/aliyun/credentials-go/credentials"
)

// sessionJob is a job of ../../credentials.py: the library's configuration, and the ports to which the names that it uses lead.
type sessionJob struct {
	Hosts  map[string]int     `json:"hosts"`
	CA     string             `json:"ca"`
	Config credentials.Config `json:"go"`
}

// sessionResult is the session that was returned, or what was raised.
type sessionResult struct {
	OK      bool     `json:"ok"`
	Session []string `json:"session,omitempty"`
	Message string   `json:"message,omitempty"`
}

// serveSessions answers each job with a session of the credentials library.
func serveSessions(lines *bufio.Scanner) {
	for lines.Scan() {
		var job sessionJob
		must(json.Unmarshal(lines.Bytes(), &job))
		lead(job)
		session, err := fetch(&job.Config)
		answer := sessionResult{OK: err == nil, Session: session}
		if err != nil {
			answer.Message = err.Error()
		}
		must(json.NewEncoder(os.Stdout).Encode(answer))
	}
	must(lines.Err())
}

// lead changes the transport that the library copies: an HTTPS connection to a name of the job goes to its port, and to no other host. The certificate is
// verified for the name.
func lead(job sessionJob) {
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM([]byte(content(job.CA))) {
		must(errors.New("the authority cannot be read"))
	}
	http.DefaultTransport.(*http.Transport).DialTLSContext = func(ctx context.Context, network, address string) (net.Conn, error) {
		host, _, err := net.SplitHostPort(address)
		if err != nil {
			return nil, err
		}
		port, known := job.Hosts[host]
		if !known {
			return nil, fmt.Errorf("%s leads nowhere in this test", host)
		}
		dialer := tls.Dialer{Config: &tls.Config{RootCAs: roots, ServerName: host}}
		return dialer.DialContext(ctx, network, fmt.Sprintf("127.0.0.1:%d", port))
	}
}

func fetch(config *credentials.Config) ([]string, error) {
	source, err := credentials.NewCredential(config)
	if err != nil {
		return nil, err
	}
	found, err := source.GetCredential()
	if err != nil {
		return nil, err
	}
	return []string{*found.AccessKeyId, *found.AccessKeySecret, *found.SecurityToken}, nil
}
