// What NGINX's own language cannot do: keys by their digest, and a request's model. For njs 0.7.9 and later.
import crypto from 'crypto';
import fs from 'fs';
import models from 'models.js';

// A request's members called "model" that are text. As a member's name it never follows a backslash. Looked for as text, since njs reads JSON
// only 32 levels deep, and stands still meanwhile: two seconds for 16 MB of small members, where this takes 0.1.
const MODEL = /(?<!\\)"model"\s*:\s*"((?:[^"\\]|\\.){0,512})"/g;
const READABLE = 1 << 20;

// SHA-256 of the key that a client sends, in hex. NGINX's map compares text without regard to case, which for digests does no harm and for
// keys would; and so no key lies on the proxy's disk.
function keyDigest(r) {
    const bearer = /^Bearer +([!-~]+)$/i.exec(r.headersIn.Authorization || '');
    return bearer ? crypto.createHash('sha256').update(bearer[1]).digest('hex') : '';
}

// The client's name; '' for a key that is missing, wrong or has expired.
function client(r) {
    const expires = Number(r.variables.vllm_key_expires);
    return expires && expires * 1000 <= Date.now() ? '' : r.variables.vllm_key_client;
}

// The models that the client may use; without a scope, all.
function modelsFor(r) {
    const scope = r.variables.vllm_scope && r.variables.vllm_scope.split(' ');
    return scope ? models.filter((model) => scope.indexOf(model.name) >= 0) : models;
}

// The model that a request names; '' where it names none, null where it cannot be told.
function modelOf(text) {
    const names = [];
    let match;
    MODEL.lastIndex = 0;
    while ((match = MODEL.exec(text)) !== null) {
        if (names.indexOf(match[1]) < 0) {
            names.push(match[1]);
        }
        if (names.length > 1) {
            break;
        }
    }
    try {
        // Members of members have the name as well: only the whole text tells which is the request's own.
        const name = names.length > 1 ? (text.length > READABLE ? null : JSON.parse(text).model) : JSON.parse(`"${names[0] || ''}"`);
        return name === undefined ? '' : typeof name === 'string' ? name : null;
    } catch (e) {
        return null;
    }
}

function isThere(path) {
    try {
        fs.accessSync(path);
        return true;
    } catch (e) {
        return false;
    }
}

// Whether an instance takes requests. Its launcher says so: not before it has begun, and not while it loads, drains or hangs.
function takesRequests(replica) {
    const folder = `/run/vllm/${replica.name}`;
    return isThere(`${folder}/state.json`) && !isThere(`${folder}/away`);
}

// The upstream group with those replicas that take requests; '' where none does. All but one are a group of their own.
function poolOf(model) {
    const here = model.replicas.map((replica, index) => index).filter((index) => takesRequests(model.replicas[index]));
    const away = model.replicas.length - here.length;
    if (!away) {
        return `vllm_${model.name}`;
    }
    if (away === 1 && here.length > 1) {
        return `vllm_${model.name}_without_${model.replicas.findIndex((replica, index) => here.indexOf(index) < 0)}`;
    }
    return here.length ? `vllm_${model.name}_only_${here[Math.floor(Math.random() * here.length)]}` : '';
}

function refuse(r, status, code, message) {
    r.headersOut['Content-Type'] = 'application/json';
    r.return(status, JSON.stringify({ error: { message, type: 'invalid_request_error', param: 'model', code } }));
}

// Leads a request to the model that its path says ($vllm_model), or else its body.
function route(r) {
    const slug = r.variables.vllm_model;
    const name = slug ? '' : modelOf(r.requestText || '');
    if (name === null) {
        refuse(r, 400, 'bad_request', 'The request is no JSON object, or its "model" is no text.');
        return;
    }
    // One that names no model gets the default one, as from vLLM alone.
    const model = modelsFor(r).find((one) => (slug ? one.name === slug : name ? one.served_as.indexOf(name) >= 0 : one.default));
    if (!model && !slug && !name) {
        refuse(r, 400, 'model_missing', 'The request names no "model". GET /v1/models lists those that there are.');
        return;
    }
    if (!model) {
        // Bytes that are no UTF-8 would make the answer none.
        const wanted = (slug || name).replace(/[^ -~]/g, '?');
        refuse(r, 404, 'model_not_found', `The model '${wanted}' does not exist. GET /v1/models lists those that do.`);
        return;
    }
    r.variables.vllm_model = model.name;
    r.variables.vllm_pool = poolOf(model);
    if (r.variables.vllm_pool) {
        r.internalRedirect('@vllm');
    } else {
        r.return(503);
    }
}

// All names of all models that the client may use, and how long a request may be, which clients read of vLLM's own list.
function list(r) {
    const data = [];
    modelsFor(r).forEach((model) => {
        model.served_as.forEach((id) => {
            data.push({ id, object: 'model', created: 0, owned_by: 'vllm', max_model_len: model.max_model_len });
        });
    });
    r.headersOut['Content-Type'] = 'application/json';
    r.return(200, JSON.stringify({ object: 'list', data }));
}

// For a load balancer in front of this host: whether each model has an instance that takes requests.
function ready(r) {
    if (models.every((model) => model.replicas.some(takesRequests))) {
        r.return(200, '');
    } else {
        r.return(503);
    }
}

export default { client, keyDigest, list, modelOf, poolOf, ready, route };
