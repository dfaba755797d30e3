// The Node SDK (@alicloud/cams20200606) as an application uses it. Its input and output are those of python_new.py.

const fs = require("fs");
const readline = require("readline");
const { default: Client, ...models } = require("@alicloud/cams20200606");
const { Config, GlobalParameters } = require("@alicloud/openapi-client");
const { RuntimeOptions } = require("@alicloud/tea-util");

const REQUESTS = {
  CreateFlow: ["createFlowWithOptions", (name) => new models.CreateFlowRequest({ flowName: name, categories: ["SIGN_UP", "OTHER"] })],
  ListFlow: [
    "listFlowWithOptions",
    (name) => new models.ListFlowRequest({ flowName: name, page: new models.ListFlowRequestPage({ index: 1, size: 10 }) }),
  ],
  GetPreValidatePhoneId: [
    "getPreValidatePhoneIdWithOptions",
    (name) => new models.GetPreValidatePhoneIdRequest({ phoneNumber: "1", verifyCode: name }),
  ],
};

// The Node SDK takes the content of a PEM file, not its name.
const read = (path) => (path ? fs.readFileSync(path, "utf8") : undefined);

function client(job) {
  const config = new Config({
    accessKeyId: job.key,
    accessKeySecret: job.secret,
    securityToken: job.token,
    endpoint: job.endpoint,
    protocol: job.protocol,
    ca: read(job.ca),
    cert: read(job.certificate && job.certificate.cert),
    key: read(job.certificate && job.certificate.key),
  });
  if (job.hold) {
    config.globalParameters = new GlobalParameters({ headers: { "x-flowgate-hold": job.hold } });
  }
  if (job.scheme === "V1") {
    config.signatureAlgorithm = "v2";
  }
  return new Client(config);
}

async function call(sdk, job, name) {
  const [method, request] = REQUESTS[job.action];
  // Both are set, because the connect time-out is also the socket's idle timer.
  const runtime = new RuntimeOptions(job.timeout_ms ? { readTimeout: job.timeout_ms, connectTimeout: job.timeout_ms } : {});
  try {
    const { body } = await sdk[method](request(name), runtime);
    return { ok: true, code: body.code, flow_name: body.data && body.data.flowName };
  } catch (error) {
    const status_code = error.data && error.data.statusCode;
    const retry_after = error.data && error.data.RetryAfter;
    return { ok: false, exception: error.name, code: error.code, message: error.message, status_code, retry_after };
  }
}

// Makes a call, and repeats it once at the time that a refusal gives.
async function obey(sdk, job, name) {
  const first = await call(sdk, job, name);
  if (first.code !== "System.LimitControl" || !first.retry_after) {
    return first;
  }
  await new Promise((resolve) => setTimeout(resolve, first.retry_after));
  return { ...first, second: await call(sdk, job, name) };
}

async function main() {
  console.log("ready");
  for await (const line of readline.createInterface({ input: process.stdin })) {
    const job = JSON.parse(line);
    const sdk = client(job);
    console.log(JSON.stringify(await Promise.all(job.names.map((name) => (job.obeys ? obey : call)(sdk, job, name)))));
  }
}

main();
