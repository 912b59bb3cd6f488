import { create, fromBinary, fromJson, type JsonObject, type JsonValue, toBinary, toJson } from '@bufbuild/protobuf';
import { AnySchema } from '@bufbuild/protobuf/wkt';
import { messageOf } from '@mizzen/common';
import { StatusSchema } from '@mizzen/envoy-api/gen/google/rpc/status_pb.js';
import { TranscodingPerRouteSchema } from '@mizzen/envoy-api/gen/mizzen/http/v1/filters_pb.js';
import { type Binding, fieldAt, readTranscodedMethods, type TranscodedMethods } from '@mizzen/gateway';
import type { Exchange } from '../../http/exchange.ts';
import { httpStatusOfGrpc } from '../../http/grpc.ts';
import type { MessageTransform } from '../../http/message-transform.ts';
import { type Fields, noFields } from '../../message/fields.ts';
import { KeptSlices } from '../../message/kept-slices.ts';
import type { ResponseHead } from '../../message/response-head.ts';
import type { FilterKind } from '../filter.ts';
import { unpackConfig } from '../unpack-config.ts';

const name = 'mizzen.filters.http.grpc_json_transcoder';
const defaultMaxBodyBytes = 1024 * 1024;
const maxAnswerBytes = 16 * 1024 * 1024;
const empty = Buffer.alloc(0);

interface Transcoding extends TranscodedMethods {
  readonly maxBodyBytes: number;
}

/**
 * mizzen.filters.http.grpc_json_transcoder: unary methods of gRPC services called by JSON, as their google.api.http annotations say
 * (google/api/http.proto). Calls by gRPC and gRPC-Web pass. Any other request that fits no annotation is refused here, as by Envoy's `reject_unknown_method`: a gRPC server resets
 * what is not gRPC, and outlier detection would take these resets for failures of the server.
 */
export const transcoder: FilterKind = {
  name,
  create: (_any, _place, { counters }) => ({
    name,
    onRequest(exchange) {
      const config = exchange.filterConfig(name) as Transcoding | undefined;
      if (config === undefined || exchange.isGrpc || isGrpcWeb(exchange)) return 'continue';
      const { head } = exchange;
      const cut = head.target.indexOf('?');
      const path = cut < 0 ? head.target : head.target.slice(0, cut);
      for (const binding of config.bindings) {
        const match = binding.httpMethod === head.method ? binding.template.pattern.exec(path) : null;
        if (match === null) continue;
        exchange.collectRequest(config.maxBodyBytes, (body) => {
          let message: Uint8Array;
          try {
            const json = requestJson(binding, match, cut < 0 ? '' : head.target.slice(cut + 1), body);
            message = toBinary(binding.method.input, fromJson(binding.method.input, json, { registry: config.registry }));
          } catch (error) {
            counters.countRejection('transcoder', 'bad_request');
            const detail = messageOf(error).replace(/^cannot decode (message|field) /, '');
            return exchange.replyProblem(
              400,
              { title: 'Bad Request', detail: `this is no ${binding.method.input.typeName}: ${detail}` },
              'transcoder_bad_request',
            );
          }
          callByGrpc(exchange, binding, message, config);
          exchange.resumeFilters();
        });
        return 'stop';
      }
      refuseUnknown(exchange, config, path);
      return 'stop';
    },
  }),
  compileRoute(any, place): Transcoding {
    const { descriptorSet, services, maxBodyBytes } = unpackConfig(TranscodingPerRouteSchema, any, place);
    return { ...readTranscodedMethods(descriptorSet, services, place), maxBodyBytes: maxBodyBytes || defaultMaxBodyBytes };
  },
};

const isGrpcWeb = ({ head }: Exchange) => head.method === 'POST' && head.headers.get('content-type')?.startsWith('application/grpc-web') === true;

function refuseUnknown(exchange: Exchange, { bindings }: Transcoding, path: string): void {
  const allowed = new Set(bindings.filter(({ template }) => template.pattern.test(path)).map(({ httpMethod }) => httpMethod));
  if (allowed.size === 0)
    return exchange.replyProblem(404, { title: 'Not Found', detail: 'no method of the service has this path' }, 'transcoder_unknown_path');
  const allow = [...allowed].sort().join(', ');
  const detail = `the path is for ${allow}`;
  exchange.replyProblem(405, { title: 'Method Not Allowed', detail }, 'transcoder_unknown_method', [['allow', allow]]);
}

function callByGrpc(exchange: Exchange, { method, responseBody }: Binding, message: Uint8Array, { registry }: Transcoding): void {
  const { head } = exchange;
  const frame = Buffer.allocUnsafe(5 + message.length);
  frame[0] = 0;
  frame.writeUInt32BE(message.length, 1);
  frame.set(message, 5);
  head.method = 'POST';
  exchange.retarget(`/${method.parent.typeName}/${method.name}`);
  head.headers.set('content-type', 'application/grpc');
  head.headers.set('te', 'trailers');
  for (const field of ['accept', 'accept-encoding', 'content-encoding']) head.headers.remove(field);
  exchange.replaceRequestBody(frame);
  exchange.transformWith(new JsonAnswer(method, responseBody, registry));
}

/** The request's message as JSON: the body, and what the path and the query say. */
function requestJson(binding: Binding, match: RegExpExecArray, query: string, body: Buffer): JsonValue {
  let json: JsonObject = {};
  if (binding.body === '*') {
    const parsed = body.length === 0 ? {} : (JSON.parse(body.toString('utf8')) as JsonValue);
    if (typeof parsed !== 'object' || parsed === null || Array.isArray(parsed)) throw new Error('the body must be an object');
    json = parsed;
  } else if (binding.body !== '' && body.length > 0) setAt(binding, json, binding.body, JSON.parse(body.toString('utf8')) as JsonValue);
  for (const [i, field] of binding.template.fields.entries()) setAt(binding, json, field, decodeURIComponent(match[i + 1]!));
  if (binding.body === '*' || query === '') return json;
  const lists = new Map<string, string[]>();
  for (const [key, value] of new URLSearchParams(query)) {
    const values = lists.get(key);
    if (values === undefined) lists.set(key, [value]);
    else values.push(value);
  }
  for (const [key, values] of lists) {
    const field = fieldAt(binding.method.input, key);
    if (binding.template.fields.includes(key)) throw new Error(`${key} is part of the path`);
    if (field.fieldKind === 'list')
      setAt(
        binding,
        json,
        key,
        values.map((value) => textValue(value, field.listKind === 'scalar' ? field.scalar : undefined)),
      );
    else if (values.length > 1) throw new Error(`${key} may be given once`);
    else setAt(binding, json, key, values[0]!);
  }
  return json;
}

/** ScalarType.BOOL */
const boolType = 8;

/** JSON has numbers as text too (proto3 JSON mapping); true and false it has not. */
function textValue(value: string, scalar: number | undefined): JsonValue {
  return scalar === boolType && (value === 'true' || value === 'false') ? value === 'true' : value;
}

function setAt(binding: Binding, json: JsonObject, path: string, value: JsonValue): void {
  const parts = path.split('.');
  const field = fieldAt(binding.method.input, path);
  let at: JsonObject = json;
  let message = binding.method.input;
  for (const part of parts.slice(0, -1)) {
    const next = fieldAt(message, part);
    const member = (at[next.jsonName] ??= {}) as JsonObject;
    at = member;
    message = next.message!;
  }
  // Both names of a field are its names; only one may be set.
  delete at[field.name];
  at[field.jsonName] = typeof value === 'string' ? textValue(value, field.fieldKind === 'scalar' ? field.scalar : undefined) : value;
}

/** Makes JSON of a gRPC answer: its message, or its status where that says that something went wrong. */
class JsonAnswer implements MessageTransform {
  readonly contentType = 'application/json';
  readonly #method: Binding['method'];
  readonly #responseBody: string;
  readonly #registry: Transcoding['registry'];
  #slices: KeptSlices;
  #bytes: number;

  constructor(method: Binding['method'], responseBody: string, registry: Transcoding['registry']) {
    this.#method = method;
    this.#responseBody = responseBody;
    this.#registry = registry;
    this.#slices = new KeptSlices();
    this.#bytes = 0;
  }

  requestData(slice: Buffer): Buffer {
    return slice;
  }

  requestEnd(): Buffer {
    return empty;
  }

  responseHead(): 'hold' {
    return 'hold';
  }

  responseData(slice: Buffer): Buffer {
    this.#bytes += slice.length;
    if (this.#bytes <= maxAnswerBytes) this.#slices.push(Buffer.from(slice));
    return empty;
  }

  responseEnd(head: ResponseHead, trailers: Fields): { data: Buffer; trailers: Fields } {
    const trailer = (field: string) => trailers.find(([candidate]) => candidate === field)?.[1] ?? head.headers.get(field);
    const status = trailer('grpc-status');
    let json: JsonValue;
    let code = 200;
    if (head.status !== 200 || status === undefined) {
      code = head.status === 200 ? 502 : head.status;
      json = { code: 2, message: `the service did not answer as gRPC does (HTTP status ${head.status})` };
    } else if (status !== '0') {
      code = httpStatusOfGrpc(Number(status));
      json = this.#statusJson(Number(status), trailer('grpc-message'), trailer('grpc-status-details-bin'));
    } else {
      try {
        json = this.#messageJson();
      } catch (error) {
        code = 502;
        json = { code: 13, message: `the service's answer cannot be read: ${messageOf(error)}` };
      }
    }
    const data = Buffer.from(JSON.stringify(json));
    head.status = code;
    head.line = '';
    for (const field of ['grpc-status', 'grpc-message', 'grpc-status-details-bin', 'grpc-encoding', 'grpc-accept-encoding', 'trailer'])
      head.headers.remove(field);
    head.headers.set('content-type', this.contentType);
    head.headers.set('content-length', String(data.length));
    head.contentLength = data.length;
    head.isChunked = false;
    return { data, trailers: noFields };
  }

  #messageJson(): JsonValue {
    const content = Buffer.concat(this.#slices.slices);
    if (this.#bytes > maxAnswerBytes) throw new Error(`it is larger than ${maxAnswerBytes} bytes`);
    if (content.length < 5 || content[0] !== 0 || content.readUInt32BE(1) !== content.length - 5) throw new Error('it is no single, uncompressed message');
    const json = toJson(this.#method.output, fromBinary(this.#method.output, content.subarray(5)), { registry: this.#registry, alwaysEmitImplicit: true });
    if (this.#responseBody === '') return json;
    return (json as JsonObject)[fieldAt(this.#method.output, this.#responseBody).jsonName] ?? null;
  }

  #statusJson(code: number, message: string | undefined, details: string | undefined): JsonValue {
    const plain = { code, message: decodeMessage(message ?? '') };
    if (details === undefined) return plain;
    try {
      const status = fromBinary(StatusSchema, Buffer.from(details, 'base64'));
      return { ...plain, details: status.details.map((detail) => toJson(AnySchema, create(AnySchema, detail), { registry: this.#registry })) };
    } catch {
      // Details of types that the descriptor set does not have cannot be shown.
      return plain;
    }
  }
}

function decodeMessage(text: string): string {
  try {
    return decodeURIComponent(text);
  } catch {
    return text;
  }
}
