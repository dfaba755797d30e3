package main

import (
	"encoding/json"

	openapi "github.com/alibabacloud-go/darabonba-openapi/v2/client"
	openapiutil "github.com/alibabacloud-go/darabonba-openapi/v2/utils"
	"github.com/alibabacloud-go/tea/dara"
)

// createFlow is the operation as the generated client (cams-20200606) describes it to the core: an RPC call whose parameters are in the query.
var createFlow = &openapiutil.Params{
	Action:      dara.String("CreateFlow"),
	Version:     dara.String("2020-06-06"),
	Protocol:    dara.String("HTTPS"),
	Pathname:    dara.String("/"),
	Method:      dara.String("POST"),
	AuthType:    dara.String("AK"),
	Style:       dara.String("RPC"),
	ReqBodyType: dara.String("formData"),
	BodyType:    dara.String("json"),
}

// newest calls with the newest SDK's core.
func newest(job job) (caller, error) {
	client, err := openapi.NewClient(config(job))
	if err != nil {
		return nil, err
	}
	return func(name string) (result, error) {
		request := &openapiutil.OpenApiRequest{Query: map[string]*string{
			"FlowName":   dara.String(name),
			"Categories": openapiutil.ArrayToStringWithSpecifiedStyle([]string{"SIGN_UP", "OTHER"}, dara.String("Categories"), dara.String("json")),
		}}
		answer, err := client.CallApi(createFlow, request, runtime(job, name))
		if err != nil {
			return result{}, err
		}
		body, err := json.Marshal(answer["body"])
		if err != nil {
			return result{}, err
		}
		return returned(body)
	}, nil
}

// runtime has the call's idempotency key, as the job wants it carried.
func runtime(job job, name string) *dara.RuntimeOptions {
	key := dara.String(idempotencyKey(name))
	switch job.Keyed {
	case "header":
		return &dara.RuntimeOptions{ExtendsParameters: &dara.ExtendsParameters{Headers: map[string]*string{"Idempotency-Key": key}}}
	case "token":
		return &dara.RuntimeOptions{ExtendsParameters: &dara.ExtendsParameters{Queries: map[string]*string{"ClientToken": key}}}
	}
	return &dara.RuntimeOptions{}
}

func config(job job) *openapiutil.Config {
	config := &openapiutil.Config{
		AccessKeyId:     dara.String(job.Key),
		AccessKeySecret: dara.String(job.Secret),
		Endpoint:        dara.String(job.Endpoint),
		Protocol:        dara.String(job.Protocol),
	}
	if job.Token != "" {
		config.SecurityToken = dara.String(job.Token)
	}
	if job.Scheme == "V1" {
		config.SignatureAlgorithm = dara.String("v2")
	}
	if job.Proxy != "" {
		config.HttpProxy = dara.String(job.Proxy)
	}
	if job.TimeoutMs != 0 {
		config.ReadTimeout = dara.Int(job.TimeoutMs)
	}
	if job.CA != "" {
		config.Ca = dara.String(content(job.CA))
	}
	if job.Certificate != nil {
		config.Cert = dara.String(content(job.Certificate.Cert))
		config.Key = dara.String(content(job.Certificate.Key))
	}
	if job.Hold != "" {
		config.GlobalParameters = &openapiutil.GlobalParameters{Headers: map[string]*string{"x-flowgate-hold": dara.String(job.Hold)}}
	}
	return config
}
