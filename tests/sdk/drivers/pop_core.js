// The old Node SDK's core (@alicloud/pop-core) as an application uses it, with its default options but for the method, which is the argument: GET or POST.
// Input and output are described in ../sdks.py.

const crypto = require("crypto");
const fs = require("fs");
const https = require("https");
const readline = require("readline");
const RPCClient = require("@alicloud/pop-core");

const method = process.argv[2];

const read = (path) => (path ? fs.readFileSync(path) : undefined);

function client(job) {
  return new RPCClient({
    accessKeyId: job.key,
    accessKeySecret: job.secret,
    securityToken: job.token,
    endpoint: `${job.protocol.toLowerCase()}://${job.endpoint}`,
    apiVersion: "2020-06-06",
  });
}

// The idempotency key of the order for this flow, which each repetition has.
const keyOf = (name) => crypto.createHash("sha256").update(name).digest("hex");

function options(job, agent, name) {
  const chosen = {};
  // GET is the default, and is not set.
  if (method !== "GET") {
    chosen.method = method;
  }
  if (job.timeout_ms) {
    chosen.timeout = job.timeout_ms;
  }
  // They replace the headers that the SDK sets itself, of which no call depends on one.
  if (job.keyed === "header") {
    chosen.headers = { "Idempotency-Key": keyOf(name) };
  }
  if (agent) {
    chosen.agent = agent;
  }
  return chosen;
}

async function call(sdk, job, agent, name) {
  try {
    const parameters = { flowName: name, categories: '["SIGN_UP","OTHER"]' };
    if (job.keyed === "token") {
      parameters.clientToken = keyOf(name);
    }
    const body = await sdk.request("createFlow", parameters, options(job, agent, name));
    const { FlowName: flow_name, FlowId: flow_id } = body.Data || {};
    return { ok: true, code: body.Code, flow_name, flow_id };
  } catch (error) {
    const { statusCode, headers } = (error.entry && error.entry.response) || {};
    const retry_after = headers && Number(headers["x-acs-retry-after"]);
    return { ok: false, exception: error.name, code: error.code, message: error.message, status_code: statusCode, retry_after: retry_after || undefined };
  }
}

async function main() {
  console.log("ready");
  for await (const line of readline.createInterface({ input: process.stdin })) {
    const job = JSON.parse(line);
    const sdk = client(job);
    const certificate = job.certificate || {};
    const agent = job.ca || job.certificate ? new https.Agent({ ca: read(job.ca), cert: read(certificate.cert), key: read(certificate.key) }) : undefined;
    console.log(JSON.stringify(await Promise.all(job.names.map((name) => call(sdk, job, agent, name)))));
  }
}

main();
