// SHA-256 of the key that a client sends, in hex. NGINX's map compares text without regard to case, which for digests does no
// harm and for keys would; and so no key lies on the proxy's disk.
import crypto from 'crypto';

function keyDigest(r) {
    const bearer = /^Bearer +([!-~]+)$/i.exec(r.headersIn.Authorization || '');
    return bearer ? crypto.createHash('sha256').update(bearer[1]).digest('hex') : '';
}

export default { keyDigest };
