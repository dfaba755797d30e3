package main

import (
	"crypto/tls"
	"crypto/x509"
	"net/http"
	"strings"
	"time"

	"github.com/aliyun/alibaba-cloud-sdk-go/sdk"
	"github.com/aliyun/alibaba-cloud-sdk-go/sdk/auth"
	"github.com/aliyun/alibaba-cloud-sdk-go/sdk/auth/credentials"
	"github.com/aliyun/alibaba-cloud-sdk-go/sdk/requests"
)

const region = "ap-southeast-1"

// old calls with the old SDK's CommonRequest, one client for all calls.
func old(job job) (caller, error) {
	client, err := oldClient(job)
	if err != nil {
		return nil, err
	}
	return func(name string) (result, error) {
		request := commonRequest(job, name)
		request.Method = requests.POST
		return process(client, request)
	}, nil
}

// commandLine calls as the aliyun CLI does for
//
//	aliyun cams CreateFlow --endpoint ... --FlowName ... --Categories ... --force --version 2020-06-06
//
// each time with a client of its own, because each call is a process. What it sets is what the CLI's openapi/invoker.go and openapi/force_rpc.go set.
func commandLine(job job) (caller, error) {
	return func(name string) (result, error) {
		client, err := oldClient(job)
		if err != nil {
			return result{}, err
		}
		client.AppendUserAgent("Aliyun-CLI", "3.0.0")
		return process(client, commonRequest(job, name))
	}, nil
}

func oldClient(job job) (*sdk.Client, error) {
	config := sdk.NewConfig()
	if job.CA != "" || job.Certificate != nil {
		config.HttpTransport = &http.Transport{TLSClientConfig: tlsConfig(job)}
	}
	client, err := sdk.NewClientWithOptions(region, config, credential(job))
	if err != nil {
		return nil, err
	}
	if job.TimeoutMs != 0 {
		client.SetReadTimeout(time.Duration(job.TimeoutMs) * time.Millisecond)
	}
	if job.Proxy != "" {
		client.SetHttpProxy(job.Proxy)
	}
	return client, nil
}

func credential(job job) auth.Credential {
	if job.Token != "" {
		return credentials.NewStsTokenCredential(job.Key, job.Secret, job.Token)
	}
	return credentials.NewAccessKeyCredential(job.Key, job.Secret)
}

func commonRequest(job job, name string) *requests.CommonRequest {
	request := requests.NewCommonRequest()
	request.Product = "cams"
	request.RegionId = region
	request.Version = "2020-06-06"
	request.ApiName = "CreateFlow"
	request.Domain = job.Endpoint
	request.Scheme = strings.ToLower(job.Protocol)
	request.QueryParams["FlowName"] = name
	request.QueryParams["Categories"] = `["SIGN_UP","OTHER"]`
	if job.Hold != "" {
		request.Headers["x-flowgate-hold"] = job.Hold
	}
	switch job.Keyed {
	case "header":
		request.Headers["Idempotency-Key"] = idempotencyKey(name)
	case "token":
		request.QueryParams["ClientToken"] = idempotencyKey(name)
	}
	return request
}

func process(client *sdk.Client, request *requests.CommonRequest) (result, error) {
	response, err := client.ProcessCommonRequest(request)
	if err != nil {
		return result{}, err
	}
	return returned(response.GetHttpContentBytes())
}

func tlsConfig(job job) *tls.Config {
	config := &tls.Config{}
	if job.CA != "" {
		config.RootCAs = x509.NewCertPool()
		config.RootCAs.AppendCertsFromPEM([]byte(content(job.CA)))
	}
	if job.Certificate != nil {
		pair, err := tls.LoadX509KeyPair(job.Certificate.Cert, job.Certificate.Key)
		must(err)
		config.Certificates = []tls.Certificate{pair}
	}
	return config
}
