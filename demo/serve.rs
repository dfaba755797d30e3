//! Shell commands that call the Flowgate of `--serve` with the stock Python and Node SDKs. They
//! change only the SDKs' endpoint, and their time-outs, so that calls may wait.

use std::net::SocketAddr;

use crate::KEY;

const PYTHON: &str = r#"
pip install --quiet alibabacloud-cams20200606==5.3.1
python3 - <<'EOF'
from concurrent.futures import ThreadPoolExecutor
from alibabacloud_cams20200606.client import Client
from alibabacloud_cams20200606.models import CreateFlowRequest
from alibabacloud_tea_openapi.models import Config

client = Client(Config(
    access_key_id="KEY_ID", access_key_secret="KEY_SECRET",
    endpoint="ENDPOINT", protocol="HTTP",
    read_timeout=30000,
))

def create(number):
    request = CreateFlowRequest(flow_name=f"python-{number}", categories=["SIGN_UP"])
    return client.create_flow(request).body

with ThreadPoolExecutor(20) as pool:
    for answer in pool.map(create, range(20)):
        print(answer.code, answer.data.flow_name, answer.data.flow_id)
EOF
"#;

const NODE: &str = r#"
npm install --silent @alicloud/cams20200606@1.4.2
node - <<'EOF'
const { default: Client, CreateFlowRequest } = require('@alicloud/cams20200606');
const { Config } = require('@alicloud/openapi-client');

const client = new Client(new Config({
  accessKeyId: 'KEY_ID', accessKeySecret: 'KEY_SECRET',
  endpoint: 'ENDPOINT', protocol: 'http',
  readTimeout: 30000, connectTimeout: 30000,
}));

for (let number = 0; number < 20; number++) {
  const request = new CreateFlowRequest({ flowName: `node-${number}`, categories: ['SIGN_UP'] });
  client.createFlow(request).then(({ body }) => console.log(body.code, body.data.flowName, body.data.flowId));
}
EOF
"#;

/// Prints the addresses and the commands.
pub(crate) fn print_snippets(proxy: SocketAddr, admin: SocketAddr, cams: &str) {
    println!(
        "\nFlowgate runs at {proxy} until Ctrl-C. Its admin pages: http://{admin}/lanes and /metrics."
    );
    println!("What CAMS saw: {cams}/__report. Paste into a shell, 20 calls at once each:");
    println!("{}{}", fill(PYTHON, proxy), fill(NODE, proxy));
}

/// Puts the key and the endpoint into a snippet.
fn fill(snippet: &str, proxy: SocketAddr) -> String {
    snippet
        .replace("KEY_ID", KEY.id)
        .replace("KEY_SECRET", KEY.secret)
        .replace("ENDPOINT", &proxy.to_string())
}
