// The Node SDK (@alicloud/cams20200606) as an application uses it. Its input and output are those of python_new.py.

const crypto = require("crypto");
const fs = require("fs");
const readline = require("readline");
const { default: Client, ...models } = require("@alicloud/cams20200606");
const { Config, GlobalParameters } = require("@alicloud/openapi-client");
const { ExtendsParameters, RuntimeOptions } = require("@alicloud/tea-util");

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

// The call's idempotency key, as the job wants it carried.
function keyed(job, name) {
  const key = crypto.createHash("sha256").update(name).digest("hex");
  const carriers = { header: { headers: { "Idempotency-Key": key } }, token: { queries: { ClientToken: key } } };
  return job.keyed ? { extendsParameters: new ExtendsParameters(carriers[job.keyed]) } : {};
}

async function call(sdk, job, name) {
  const [method, request] = REQUESTS[job.action];
  // Both are set, because the connect time-out is also the socket's idle timer.
  const options = job.timeout_ms ? { readTimeout: job.timeout_ms, connectTimeout: job.timeout_ms } : {};
  const runtime = new RuntimeOptions({ ...options, ...keyed(job, name) });
  try {
    const { body, headers } = await sdk[method](request(name), runtime);
    const { flowName, flowId } = body.data || {};
    return { ok: true, code: body.code, flow_name: flowName, flow_id: flowId, key_state: headers["x-flowgate-idempotency"] };
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
