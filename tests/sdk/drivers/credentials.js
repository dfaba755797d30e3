// The Node library @alicloud/credentials as an application uses it: it calls STS by POST with a form. Reads one job per line as JSON and prints one line: the
// session that was returned, or what was raised. The names that the library uses lead to the ports of the simulator, see credentials.py.

const http = require("http");
const https = require("https");
const readline = require("readline");
const { default: Credential, Config } = require("@alicloud/credentials");

let hosts = {};

// Each host leads to one port of this machine, and no other host leads anywhere. The name of the certificate stays the host's.
function lead(agent) {
  const create = agent.prototype.createConnection;
  agent.prototype.createConnection = function (options, done) {
    const port = options.host === "127.0.0.1" ? options.port : hosts[options.host];
    if (!port) {
      throw new Error(`${options.host} leads nowhere in this test`);
    }
    return create.call(this, { ...options, host: "127.0.0.1", port }, done);
  };
}

async function run(job) {
  hosts = job.hosts;
  try {
    const found = await new Credential(new Config(job.node)).getCredential();
    return { ok: true, session: [found.accessKeyId, found.accessKeySecret, found.securityToken] };
  } catch (error) {
    return { ok: false, exception: error.name, message: error.message };
  }
}

async function main() {
  lead(http.Agent);
  lead(https.Agent);
  console.log("ready");
  for await (const line of readline.createInterface({ input: process.stdin })) {
    console.log(JSON.stringify(await run(JSON.parse(line))));
  }
}

main();
