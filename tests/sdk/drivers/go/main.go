// The Go SDKs as an application uses them. The argument names the SDK: "go" or "go-old", or "aliyun-cli" for what Alibaba's command line does with the
// old one. Input and output are described in ../../sdks.py. "credentials" is the library that gets sessions, for ../../credentials.py.
package main

import (
	"bufio"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"os"
	"sync"
)

// job is a driver's job, as parties.py builds it.
type job struct {
	Key         string       `json:"key"`
	Secret      string       `json:"secret"`
	Token       string       `json:"token"`
	Endpoint    string       `json:"endpoint"`
	Proxy       string       `json:"proxy"`
	Protocol    string       `json:"protocol"`
	CA          string       `json:"ca"`
	Certificate *certificate `json:"certificate"`
	Scheme      string       `json:"scheme"`
	TimeoutMs   int          `json:"timeout_ms"`
	Hold        string       `json:"hold"`
	Keyed       string       `json:"keyed"`
	Names       []string     `json:"names"`
}

// certificate names the PEM files of a client certificate.
type certificate struct {
	Cert string `json:"cert"`
	Key  string `json:"key"`
}

// result is what an application got of one call: an answer or an error.
type result struct {
	OK         bool   `json:"ok"`
	Code       string `json:"code,omitempty"`
	FlowName   string `json:"flow_name,omitempty"`
	FlowId     string `json:"flow_id,omitempty"`
	Exception  string `json:"exception,omitempty"`
	Message    string `json:"message,omitempty"`
	StatusCode int    `json:"status_code,omitempty"`
	RetryAfter int    `json:"retry_after,omitempty"`
}

// A caller makes one call. Some SDKs share a client among the calls of a job.
type caller func(name string) (result, error)

var sdks = map[string]func(job) (caller, error){
	"go":         newest,
	"go-old":     old,
	"aliyun-cli": commandLine,
}

func main() {
	fmt.Println("ready")
	lines := bufio.NewScanner(os.Stdin)
	lines.Buffer(nil, 16<<20)
	if os.Args[1] == "credentials" {
		serveSessions(lines)
		return
	}
	for lines.Scan() {
		var job job
		must(json.Unmarshal(lines.Bytes(), &job))
		call, err := sdks[os.Args[1]](job)
		must(err)
		must(json.NewEncoder(os.Stdout).Encode(callAll(call, job.Names)))
	}
	must(lines.Err())
}

// callAll makes all calls at once.
func callAll(call caller, names []string) []result {
	results := make([]result, len(names))
	var calls sync.WaitGroup
	for at, name := range names {
		calls.Add(1)
		go func(answer *result, name string) {
			defer calls.Done()
			answered, err := call(name)
			if err != nil {
				answered = raised(err)
			}
			*answer = answered
		}(&results[at], name)
	}
	calls.Wait()
	return results
}

// returned reads an answer to CreateFlow.
func returned(body []byte) (result, error) {
	var answer struct {
		Code string
		Data struct{ FlowName, FlowId string }
	}
	err := json.Unmarshal(body, &answer)
	return result{OK: true, Code: answer.Code, FlowName: answer.Data.FlowName, FlowId: answer.Data.FlowId}, err
}

// idempotencyKey is the key of the order for this flow: each repetition has the same.
func idempotencyKey(name string) string {
	sum := sha256.Sum256([]byte(name))
	return hex.EncodeToString(sum[:])
}

// content reads a PEM file, if there is one.
func content(path string) string {
	if path == "" {
		return ""
	}
	text, err := os.ReadFile(path)
	must(err)
	return string(text)
}

func must(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
