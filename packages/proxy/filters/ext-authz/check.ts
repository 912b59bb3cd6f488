import { create, fromBinary, toBinary } from '@bufbuild/protobuf';
import { timestampFromMs } from '@bufbuild/protobuf/wkt';
import type { Init } from '@mizzen/envoy-api';
import type { HeaderValue, HeaderValueOption } from '@mizzen/envoy-api/gen/envoy/config/core/v3/base_pb.js';
import { HeaderValueOption_HeaderAppendAction as AppendAction } from '@mizzen/envoy-api/gen/envoy/config/core/v3/base_pb.js';
import type { HttpService } from '@mizzen/envoy-api/gen/envoy/extensions/filters/http/ext_authz/v3/ext_authz_pb.js';
import type { AttributeContextSchema } from '@mizzen/envoy-api/gen/envoy/service/auth/v3/attribute_context_pb.js';
import { CheckRequestSchema, CheckResponseSchema } from '@mizzen/envoy-api/gen/envoy/service/auth/v3/external_auth_pb.js';
import type { Exchange } from '../../http/exchange.ts';
import type { Fields } from '../../message/fields.ts';
import { unicodeText, utf8Bytes } from '../../message/header-bytes.ts';
import { isFinalStatus, type ResponseHead } from '../../message/response-head.ts';
import type { ConnectionInfo } from '../../net/connection-info.ts';
import type { PeerIdentity } from '../../tls/peer-identity.ts';
import type { Cluster } from '../../upstream/cluster.ts';
import { sendOwnRequest } from '../../upstream/own-request.ts';
import { unaryCall } from '../../upstream/unary-call.ts';

/** A change of one header field. */
export interface FieldChange {
  readonly name: string;
  readonly value: string;
  readonly action: 'set' | 'add' | 'append' | 'addIfAbsent' | 'setIfExists';
}

/** What somebody else has decided about a request. */
export type Decision =
  | { readonly kind: 'error'; readonly detail: string }
  | { readonly kind: 'denied'; readonly status: number; readonly fields: Fields; readonly body: Buffer }
  | {
      readonly kind: 'allowed';
      readonly request: readonly FieldChange[];
      readonly removes: readonly string[];
      readonly response: readonly FieldChange[];
      readonly querySets: readonly (readonly [key: string, value: string])[];
      readonly queryRemoves: readonly string[];
      readonly metadata: Readonly<Record<string, unknown>> | undefined;
    };

/** The request's content as far as it is told; `isPartial`: there is more of it. */
export interface ToldBody {
  readonly bytes: Buffer;
  readonly isPartial: boolean;
  readonly asBytes: boolean;
}

export type HeaderChoice = (name: string) => boolean;

const partialBodyHeader = 'x-envoy-auth-partial-body';
const maxAnswerBytes = 1024 * 1024;

/** Asks by envoy external_auth.proto `Authorization.Check`. Returns how to give it up. */
export function checkByGrpc(
  cluster: Cluster,
  authority: string,
  timeoutMs: number,
  exchange: Exchange,
  isTold: HeaderChoice,
  body: ToldBody | undefined,
  done: (decision: Decision) => void,
): () => void {
  return ask(cluster, authority, timeoutMs, attributesOf(exchange, isTold, body), done);
}

/** The same about a connection of which nobody looks into what is spoken. */
export function checkConnection(
  cluster: Cluster,
  authority: string,
  timeoutMs: number,
  { info, peer }: { readonly info: ConnectionInfo; readonly peer: PeerIdentity | undefined },
  ownPrincipal: string,
  done: (decision: Decision) => void,
): () => void {
  return ask(
    cluster,
    authority,
    timeoutMs,
    { ...endsOf(info, peer, ownPrincipal), ...(info.serverName === '' ? {} : { tlsSession: { sni: info.serverName } }) },
    done,
  );
}

function ask(
  cluster: Cluster,
  authority: string,
  timeoutMs: number,
  attributes: Init<typeof AttributeContextSchema>,
  done: (decision: Decision) => void,
): () => void {
  const request = toBinary(CheckRequestSchema, create(CheckRequestSchema, { attributes }));
  return unaryCall(cluster, authority, 'envoy.service.auth.v3.Authorization/Check', request, timeoutMs, ({ status, message, detail }) => {
    if (status !== 0 || message === undefined) return done({ kind: 'error', detail: detail || `grpc-status ${status}` });
    try {
      done(decisionOf(message));
    } catch {
      done({ kind: 'error', detail: 'the answer is no CheckResponse' });
    }
  });
}

function attributesOf(exchange: Exchange, isTold: HeaderChoice, body: ToldBody | undefined) {
  const { head, downstream, settings } = exchange;
  const { info, peer } = downstream.client;
  const headers: Record<string, string> = {};
  const told: [string, string][] = [
    [':authority', head.authority],
    [':method', head.method],
    [':path', head.target],
    [':scheme', head.headers.get('x-forwarded-proto') ?? 'http'],
  ];
  for (let i = 0; i < head.headers.names.length; i++) told.push([head.headers.names[i]!, head.headers.valueAt(i)]);
  for (const [name, value] of told) {
    if (name === 'host' || !isTold(name)) continue;
    headers[name] = Object.hasOwn(headers, name) ? `${headers[name]},${unicodeText(value)}` : unicodeText(value);
  }
  if (body !== undefined) headers[partialBodyHeader] = String(body.isPartial);
  return {
    ...endsOf(info, peer, settings.context.self.principal),
    request: {
      time: timestampFromMs(Math.round(exchange.startedAt)),
      http: {
        id: head.headers.get('x-request-id') ?? '',
        method: head.method,
        headers,
        path: unicodeText(head.target),
        host: unicodeText(head.authority),
        scheme: head.headers.get('x-forwarded-proto') ?? 'http',
        size: BigInt(head.hasBody ? head.contentLength : 0),
        protocol: exchange.protocol,
        ...(body === undefined ? {} : body.asBytes ? { rawBody: body.bytes } : { body: body.bytes.toString('utf8') }),
      },
    },
  };
}

function endsOf(info: ConnectionInfo, peer: PeerIdentity | undefined, ownPrincipal: string) {
  const socketAddress = (address: string, port: number) => ({
    address: { address: { case: 'socketAddress' as const, value: { address, portSpecifier: { case: 'portValue' as const, value: port } } } },
  });
  return {
    source: { ...socketAddress(info.remoteAddress, info.remotePort), principal: peer?.uri ?? '' },
    destination: { ...socketAddress(info.localAddress, info.localPort), principal: peer === undefined ? '' : ownPrincipal },
  };
}

function decisionOf(message: Buffer): Decision {
  const { status, httpResponse, dynamicMetadata } = fromBinary(CheckResponseSchema, message);
  if ((status?.code ?? 0) !== 0 || httpResponse.case === 'deniedResponse') {
    const denied = httpResponse.case === 'deniedResponse' ? httpResponse.value : undefined;
    if ((status?.code ?? 0) === 0 && denied === undefined) return { kind: 'error', detail: 'neither allowed nor denied' };
    const told = denied?.status?.code || 403;
    return {
      kind: 'denied',
      status: isFinalStatus(told) ? told : 403,
      fields: (denied?.headers ?? []).flatMap(({ header }) => (header === undefined ? [] : [[header.key.toLowerCase(), headerBytesOf(header)] as const])),
      body: Buffer.from(denied?.body ?? ''),
    };
  }
  const ok = httpResponse.case === 'okResponse' ? httpResponse.value : undefined;
  return {
    kind: 'allowed',
    request: (ok?.headers ?? []).map(changeOf),
    removes: (ok?.headersToRemove ?? []).map((name) => name.toLowerCase()),
    response: (ok?.responseHeadersToAdd ?? []).map((option) => ({ ...changeOf(option), action: option.append === false ? 'set' : 'add' })),
    querySets: (ok?.queryParametersToSet ?? []).map(({ key, value }) => [key, value] as const),
    queryRemoves: ok?.queryParametersToRemove ?? [],
    metadata: dynamicMetadata ?? ok?.dynamicMetadata,
  };
}

function changeOf({ header, append, appendAction }: HeaderValueOption): FieldChange {
  const actions = {
    [AppendAction.APPEND_IF_EXISTS_OR_ADD]: 'set',
    [AppendAction.ADD_IF_ABSENT]: 'addIfAbsent',
    [AppendAction.OVERWRITE_IF_EXISTS]: 'setIfExists',
    [AppendAction.OVERWRITE_IF_EXISTS_OR_ADD]: 'set',
  } as const;
  const action = append === undefined ? actions[appendAction] : append ? 'append' : 'set';
  return { name: header?.key.toLowerCase() ?? '', value: header === undefined ? '' : headerBytesOf(header), action };
}

function headerBytesOf({ value, rawValue }: HeaderValue): string {
  return value === '' ? Buffer.from(rawValue).toString('latin1') : utf8Bytes(value);
}

/** What of the answer goes where. */
export interface HttpRules {
  readonly service: HttpService;
  readonly isTold: HeaderChoice;
  /** Of the decider's answer, to the service; it takes the place of what the client has said. */
  readonly toService: HeaderChoice;
  readonly toServiceAppended: HeaderChoice;
  readonly toClientDenied: HeaderChoice | undefined;
  readonly toClientAllowed: HeaderChoice;
}

/** Always told, beside what is chosen (envoy ext_authz.proto `AuthorizationRequest`). */
const alwaysTold = new Set(['authorization']);
/** Of one hop, or of the message that they came with. */
const ownHeaders = new Set([
  'connection',
  'keep-alive',
  'transfer-encoding',
  'content-length',
  'host',
  'date',
  'server',
  'upgrade',
  'trailer',
  'te',
  'proxy-connection',
]);
/** Always passed on with a denial. */
const ofDenials = new Set(['www-authenticate', 'location', 'content-type', 'set-cookie']);

/** Asks with the head of the request, and perhaps its content; 200 is yes, 5xx no answer, all else no. */
export function checkByHttp(
  cluster: Cluster,
  timeoutMs: number,
  { service, isTold, toService, toServiceAppended, toClientDenied, toClientAllowed }: HttpRules,
  exchange: Exchange,
  body: ToldBody | undefined,
  done: (decision: Decision) => void,
): () => void {
  const { head } = exchange;
  const fields: [string, string][] = [];
  for (let i = 0; i < head.headers.names.length; i++) {
    const name = head.headers.names[i]!;
    if (!ownHeaders.has(name) && (alwaysTold.has(name) || isTold(name))) fields.push([name, head.headers.valueAt(i)]);
  }
  for (const header of service.authorizationRequest?.headersToAdd ?? []) fields.push([header.key.toLowerCase(), utf8Bytes(header.value)]);
  if (body !== undefined) fields.push([partialBodyHeader, String(body.isPartial)]);
  const request = {
    method: head.method === 'CONNECT' ? 'GET' : head.method,
    path: `${utf8Bytes(service.pathPrefix)}${head.method === 'CONNECT' ? '/' : head.target}`,
    authority: head.authority,
    fields,
    body: body?.bytes ?? Buffer.alloc(0),
    timeoutMs,
    maxAnswerBytes,
  };
  return sendOwnRequest(cluster, request, (answer) => {
    if ('reason' in answer) return done({ kind: 'error', detail: answer.detail });
    const { status } = answer.head;
    if (status >= 500) return done({ kind: 'error', detail: `HTTP status ${status}` });
    const all = fieldsOf(answer.head);
    if (!isFinalStatus(status)) return done({ kind: 'error', detail: `HTTP status ${status}` });
    if (status !== 200)
      return done({
        kind: 'denied',
        status,
        fields: all.filter(([name]) => toClientDenied === undefined || ofDenials.has(name) || toClientDenied(name)),
        body: answer.body,
      });
    const changes = (isChosen: HeaderChoice, action: FieldChange['action']) =>
      all.filter(([name]) => isChosen(name)).map(([name, value]): FieldChange => ({ name, value, action }));
    done({
      kind: 'allowed',
      request: [...changes(toService, 'set'), ...changes(toServiceAppended, 'append')],
      removes: [],
      response: changes(toClientAllowed, 'add'),
      querySets: [],
      queryRemoves: [],
      metadata: undefined,
    });
  });
}

function fieldsOf({ headers }: ResponseHead): [string, string][] {
  return headers.names.map((name, i): [string, string] => [name, headers.valueAt(i)]).filter(([name]) => !ownHeaders.has(name));
}
