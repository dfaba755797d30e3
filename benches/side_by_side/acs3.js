// What Flowgate does for a managed call, in nginx: verifies the caller's version 3 signature, and signs the call again with a new
// nonce and date. Without Flowgate's other checks: it shows what the cryptography costs there.
import crypto from 'crypto';

function secret(key) {
    return 'bench-secret-' + key.slice(-8);
}

function signature(r, key, names, headers) {
    const query = (r.variables.args || '').split('&').sort().join('&');
    const lines = names.split(';').map((name) => name + ':' + headers[name] + '\n').join('');
    const canonical = r.method + '\n/\n' + query + '\n' + lines + '\n' + names + '\n' + headers['x-acs-content-sha256'];
    const hash = crypto.createHash('sha256').update(canonical).digest('hex');
    return crypto.createHmac('sha256', secret(key)).update('ACS3-HMAC-SHA256\n' + hash).digest('hex');
}

function authorization(r) {
    const parts = r.headersIn.authorization.match(/^ACS3-HMAC-SHA256 Credential=([^,]+),SignedHeaders=([^,]+),Signature=(\w+)$/);
    if (!parts) {
        return '';
    }
    const headers = {};
    parts[2].split(';').forEach((name) => {
        headers[name] = r.headersIn[name];
    });
    if (signature(r, parts[1], parts[2], headers) !== parts[3]) {
        return '';
    }
    headers['x-acs-signature-nonce'] = r.variables.nonce = r.variables.request_id;
    headers['x-acs-date'] = r.variables.date = new Date().toISOString().slice(0, 19) + 'Z';
    const made = signature(r, parts[1], parts[2], headers);
    return 'ACS3-HMAC-SHA256 Credential=' + parts[1] + ',SignedHeaders=' + parts[2] + ',Signature=' + made;
}

export default { authorization };
