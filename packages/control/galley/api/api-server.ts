import { once } from 'node:events';
import { chmodSync, rmSync } from 'node:fs';
import { createServer as createHttpServer, type Server as HttpServer, type IncomingMessage, type ServerResponse } from 'node:http';
import { createServer, type Server } from 'node:https';
import type { AddressInfo } from 'node:net';
import { findKindByPlural, isPlainObject, type Kind, kinds, type Resource, schemaHasStatus } from '@mizzen/api';
import { errorBoundary, MizzenError, messageOf, version as programVersion, tlsDefaults } from '@mizzen/common';
import { ConnectionGuard, httpServerOptions, limitHttpTimes, maxHandshakeMs, peerOf } from '@mizzen/common/connection-guard';
import { PendingRequests } from '@mizzen/common/pending-requests';
import { ServerConnections } from '@mizzen/common/server-connections';
import { ApiError, badRequest, notFound } from '../api-error.ts';
import { jsonPatch } from '../patch/json-patch.ts';
import { mergePatch } from '../patch/merge-patch.ts';
import { strategicMergePatch } from '../patch/strategic-merge-patch.ts';
import type { ResourceRegistry, WriteContext } from '../resource-registry.ts';
import { type Attempt, type Caller, refusalOf } from './access-control.ts';
import type { ApiServerOptions, ServerCertificate } from './api-server-options.ts';
import { changesBetween } from './audit-log.ts';
import { apiGroup, apiGroupList, apiResourceList, apiVersionFor, apiVersions, groups } from './discovery.ts';
import { escalationOf, isMeshAdmin } from './escalation.ts';
import { OpenApiDocuments } from './openapi-documents.ts';
import { readBody } from './request-body.ts';
import { nameOf, namespaceOf, originOf, sendJson } from './request-parts.ts';
import { RequestTurns } from './request-turns.ts';
import { predicateOf } from './selectors.ts';
import { toTable } from './table.ts';
import { readTokenRequest, readTokenReview, reviewStatus } from './token-requests.ts';
import { UnreadResponses } from './unread-responses.ts';
import { isTrue, watchResources } from './watch.ts';

const boundary = errorBoundary('api.request');

interface Call {
  readonly caller: Caller;
  readonly request: IncomingMessage;
  readonly response: ServerResponse;
  readonly url: URL;
  /** Who calls, by what holds now. Throws ApiError 401. */
  readonly identify: () => Promise<Caller>;
  /** What was written, for the audit log. */
  written?: Resource;
}

interface Target {
  readonly kind: Kind;
  readonly version: string;
  /** undefined: all namespaces. */
  readonly namespace: string | undefined;
  readonly name: string | undefined;
  readonly subresource: string | undefined;
}

const tokenReviewPath = '/apis/authentication.k8s.io/v1/tokenreviews';

/** A client has so long for the head of a request, and for all of it. */
const maxHeadMs = 10_000;
const maxRequestMs = 60_000;
/** Kubernetes' limit. The name is kept in each object that the manager changes. */
const maxManagerLength = 128;
/** Bodies that are being read: of all callers, and how many of one address. The largest ends, or the oldest. */
const maxPendingBodyBytes = 64 * 1024 * 1024;
const maxBodiesPerPeer = 200;

/**
 * The API of the control plane: Kubernetes' REST conventions over Galley's registry, on TLS for callers with a token or certificate and on a Unix socket for
 * the user of the mesh. kubectl, client libraries and the `mizzen` command use it. Longer than other files: every request passes the same steps here
 * (limits, identity, rights, audit) before a verb is served, and they must be seen together.
 */
export class ApiServer {
  readonly #options: ApiServerOptions;
  readonly #server: Server;
  readonly #localServer: HttpServer;
  readonly #connections: readonly ServerConnections[];
  readonly #openApi: OpenApiDocuments;
  readonly #guard: ConnectionGuard;
  /** Bodies that are being read. */
  readonly #bodies: PendingRequests;
  readonly #turns: RequestTurns;
  readonly #unread: UnreadResponses;

  constructor(options: ApiServerOptions) {
    this.#options = options;
    this.#openApi = new OpenApiDocuments();
    this.#bodies = new PendingRequests({ maxPendingBytes: maxPendingBodyBytes, maxReadingPerPeer: maxBodiesPerPeer, maxWaitingPerPeer: maxBodiesPerPeer });
    this.#turns = new RequestTurns();
    this.#unread = new UnreadResponses();
    this.#server = boundary.own(
      createServer(
        { ...options.certificate, ...tlsDefaults, ...httpServerOptions, requestCert: true, rejectUnauthorized: false, handshakeTimeout: maxHandshakeMs },
        (request, response) => this.#serve(request, response, (one) => this.#identify(one)),
      ),
    );
    this.#guard = new ConnectionGuard(this.#server);
    this.#localServer = boundary.own(createHttpServer(httpServerOptions, (request, response) => this.#serve(request, response, async () => sameUser)));
    this.#connections = [this.#localServer, this.#server].map((server) => new ServerConnections(server));
    for (const server of [this.#server, this.#localServer]) limitHttpTimes(server, { maxHeadMs, maxRequestMs });
    this.#server.on('secureConnection', (socket) => options.onConnection?.(socket));
  }

  /** Starts to listen; resolves to the port. */
  async listen(): Promise<number> {
    this.#server.listen(this.#options.port, this.#options.host);
    try {
      await once(this.#server, 'listening');
    } catch (error) {
      const inUse = (error as NodeJS.ErrnoException).code === 'EADDRINUSE';
      throw new MizzenError(
        'port-in-use',
        `the API server cannot listen: ${inUse ? 'the port is in use. Stop the other process (perhaps another mizzen), or choose another port with --api-port.' : messageOf(error)}`,
        `${this.#options.host}:${this.#options.port}`,
      );
    }
    await this.#listenLocally();
    return (this.#server.address() as AddressInfo).port;
  }

  /** Uses a newer certificate from the next handshake on. */
  renewCertificate(certificate: ServerCertificate): void {
    this.#server.setSecureContext({ ...certificate, ...tlsDefaults });
  }

  async close(): Promise<void> {
    this.#unread.close();
    await Promise.all(this.#connections.map((each) => each.close()));
  }

  /** Throws ApiError 401. */
  async #identify(request: IncomingMessage): Promise<Caller> {
    const caller = await this.#options.authenticator.callerOf(request);
    this.#guard.prove(request.socket, caller.name);
    return caller;
  }

  async #readBody(request: IncomingMessage): Promise<unknown> {
    const body = this.#bodies.open(peerOf(request.socket), () => request.destroy());
    try {
      return await readBody(request, (bytes) => body.add(bytes));
    } finally {
      body.release();
    }
  }

  #serve(request: IncomingMessage, response: ServerResponse, identify: (request: IncomingMessage) => Promise<Caller>): void {
    const answer = async () => {
      if (!(await this.#turns.next(request, response))) return;
      await this.#answer(request, response, identify).catch((error: unknown) => this.#fail(request, response, error));
      this.#unread.wrote(response);
    };
    boundary.start(answer, () =>
      response.headersSent ? response.destroy() : this.#fail(request, response, new ApiError(500, 'InternalError', 'internal error')),
    );
  }

  #fail(request: IncomingMessage, response: ServerResponse, error: unknown): void {
    if (!(error instanceof ApiError)) {
      boundary.unexpected(error);
      this.#options.logger.error('a request failed', { method: request.method, url: request.url?.slice(0, 200), error: messageOf(error) });
    }
    if (response.headersSent) return void response.destroy();
    const known = error instanceof ApiError ? error : new ApiError(500, 'InternalError', messageOf(error));
    if (!request.complete) response.setHeader('connection', 'close');
    sendJson(response, known.status, known.toStatus());
  }

  /** Whoever may open the file may do all: nobody but the user whose mesh this is can. */
  async #listenLocally(): Promise<void> {
    const { socketPath, logger } = this.#options;
    if (socketPath === undefined) return;
    rmSync(socketPath, { force: true });
    try {
      this.#localServer.listen(socketPath);
      await once(this.#localServer, 'listening');
      chmodSync(socketPath, 0o600);
    } catch (error) {
      logger.warn('the API is not served on a Unix socket', { path: socketPath, error: messageOf(error) });
    }
  }

  async #answer(request: IncomingMessage, response: ServerResponse, identify: (request: IncomingMessage) => Promise<Caller>): Promise<void> {
    let url: URL;
    try {
      url = new URL(request.url ?? '/', 'https://galley');
    } catch {
      throw badRequest('the URL is not valid');
    }
    let path: string[];
    try {
      path = url.pathname.split('/').filter(Boolean).map(decodeURIComponent);
    } catch {
      throw badRequest('the URL holds an invalid percent-encoding');
    }
    if (request.method === 'GET' && path.length === 1 && ['healthz', 'livez', 'readyz'].includes(path[0]!))
      return void response.writeHead(200, { 'content-type': 'text/plain' }).end('ok');
    const published = request.method === 'GET' ? this.#options.published?.[url.pathname] : undefined;
    if (published !== undefined) return void response.writeHead(200, { 'content-type': 'application/json' }).end(await published());
    const caller = await identify(request);
    // Who asks to act as another expects fewer rights, or hopes for more: neither happens in silence.
    if (Object.keys(request.headers).some((name) => name.startsWith('impersonate-')))
      throw new ApiError(403, 'Forbidden', `${caller.name} cannot act as another user: impersonation (kubectl --as) is not supported`);
    const call: Call = { caller, request, response, url, identify: () => identify(request) };
    if (request.method === 'POST' && url.pathname === tokenReviewPath) return this.#reviewToken(call);
    if (path[0] === 'api' || path[0] === 'apis') return this.#resources(call, path);
    if (request.method === 'POST' && path[0] === 'mizzen' && path[1] === 'v1') return this.#act(call, path.slice(2));
    if (request.method !== 'GET') throw new ApiError(405, 'MethodNotAllowed', `${request.method} is not allowed here`);
    if (path[0] === 'version')
      return sendJson(response, 200, {
        major: '1',
        minor: '34',
        gitVersion: `v1.34.0+mizzen-${programVersion}`,
        platform: `${process.platform}/${process.arch}`,
        goVersion: '',
        compiler: `node ${process.version}`,
        gitCommit: '',
        gitTreeState: '',
        buildDate: '',
      });
    if (url.pathname === '/metrics' && this.#options.metrics !== undefined)
      return void response.writeHead(200, { 'content-type': 'text/plain; version=0.0.4' }).end(this.#options.metrics());
    if (path[0] === 'openapi' && path[1] === 'v3') {
      response.writeHead(200, { 'content-type': 'application/json' }).end(this.#openApi.read(path.slice(2)));
      return;
    }
    // Older than v3, and only asked for when a kind is not found there: an empty document (of zero bytes, in protobuf) lets kubectl say so.
    if (path[0] === 'openapi' && path[1] === 'v2')
      return void response.writeHead(200, { 'content-type': 'application/com.github.proto-openapi.spec.v2.v1.0+protobuf' }).end();
    if (path[0] === 'mizzen' && path[1] === 'v1') {
      const state = await this.#options.meshState(path.slice(2), caller);
      if (state !== undefined) return sendJson(response, 200, state);
    }
    throw new ApiError(404, 'NotFound', `the server has nothing at ${url.pathname}`);
  }

  async #act({ caller, request, response }: Call, path: readonly string[]): Promise<void> {
    const entry = {
      time: this.#now().toISOString(),
      caller,
      from: addressOf(request),
      verb: 'act',
      resource: `mizzen/${path.join('/')}`,
      namespace: undefined,
      name: undefined,
      isDryRun: false,
    };
    if (caller.role !== 'admin' || caller.namespaces !== undefined) {
      this.#options.audit.write({ ...entry, status: 403 });
      throw new ApiError(403, 'Forbidden', `${caller.name} (${caller.role}) cannot do that: it concerns the whole mesh, and is for admins`);
    }
    const body = await this.#readBody(request);
    let result: unknown;
    try {
      result = await this.#options.meshAction?.(path, isPlainObject(body) ? body : {});
    } catch (error) {
      if (error instanceof MizzenError) throw new ApiError(409, 'Conflict', error.message);
      throw error;
    }
    if (result === undefined) throw new ApiError(404, 'NotFound', `the server can do nothing at /mizzen/v1/${path.join('/')}`);
    this.#options.audit.write({ ...entry, status: 200, changes: [{ path: '', after: body }] });
    sendJson(response, 200, result);
  }

  async #resources(call: Call, path: readonly string[]): Promise<void> {
    const { request, response } = call;
    const isCore = path[0] === 'api';
    if (request.method === 'GET') {
      if (path.length === 1) return sendJson(response, 200, isCore ? apiVersions() : apiGroupList());
      if (!isCore && path.length === 2) {
        if (!groups.includes(path[1]!)) throw new ApiError(404, 'NotFound', `the server serves no group ${path[1]}`);
        return sendJson(response, 200, apiGroup(path[1]!));
      }
    }
    const [group, version, ...rest] = isCore ? ['', ...path.slice(1)] : path.slice(1);
    if (rest.length === 0) {
      const list = apiResourceList(group ?? '', version ?? '');
      if (!list) throw new ApiError(404, 'NotFound', `the server serves no ${group}/${version}`);
      return sendJson(response, 200, list);
    }
    const target = this.#target(group!, version!, rest);
    const verb = verbs[request.method ?? ''];
    if (verb === undefined) throw new ApiError(405, 'MethodNotAllowed', `${request.method} is not allowed on ${target.kind.plural}`);
    if (verb === 'get') {
      this.#require(call, target, target.name === undefined ? 'list' : 'get');
      return target.name === undefined ? this.#list(call, target) : this.#get(call, target);
    }
    return this.#write(call, target, verb);
  }

  #require({ caller }: Call, { kind, namespace, subresource }: Target, verb: Attempt['verb']): void {
    const refusal = refusalOf(caller, { verb, kind, namespace, subresource });
    if (refusal !== undefined) throw new ApiError(403, 'Forbidden', refusal);
  }

  /** Refuses what would give more authority than the caller has. The registry calls the check with the object that would be stored. */
  async #escalationCheck({ caller }: Call, { kind }: Target): Promise<(namespace: string, name: string, object: unknown) => void> {
    if (isMeshAdmin(caller)) return () => {};
    const held = (await this.#options.heldRoles?.()) ?? [];
    return (namespace, name, object) => {
      const refusal = escalationOf(caller, { kind, namespace, name, object }, held);
      if (refusal !== undefined) throw new ApiError(403, 'Forbidden', refusal);
    };
  }

  /** A change, and a line about it in the audit log, whatever comes of it. */
  async #write(call: Call, target: Target, verb: 'create' | 'update' | 'patch' | 'delete'): Promise<void> {
    const { caller, request, response, url } = call;
    const { kind, namespace, name } = target;
    const { store } = this.#options.registry;
    const before = name === undefined ? undefined : (await store.get({ group: kind.group, kind: kind.kind, namespace: namespace ?? '', name }))?.resource;
    const entry = {
      time: this.#now().toISOString(),
      caller,
      from: addressOf(request),
      verb,
      resource: `${kind.group}/${kind.plural}${target.subresource ? `/${target.subresource}` : ''}`,
      namespace,
      name,
      isDryRun: url.searchParams.get('dryRun') === 'All',
    };
    try {
      // Without a namespace in the URL the object says it: it is looked at there.
      if (namespace !== undefined || verb !== 'create') this.#require(call, target, verb);
      if (verb === 'create') await this.#create(call, target);
      else if (verb === 'update') await this.#update(call, target);
      else if (verb === 'patch') await this.#patch(call, target);
      else await this.#delete(call, target);
    } catch (error) {
      const { status, message } = error instanceof ApiError ? error : { status: 500, message: messageOf(error) };
      this.#options.audit.write({ ...entry, status, reason: message });
      throw error;
    }
    const changes = target.subresource ? [] : changesBetween(before, verb === 'delete' ? undefined : call.written);
    this.#options.audit.write({ ...entry, name: name ?? call.written?.metadata.name, status: response.statusCode, changes });
  }

  /** `namespaces/default/services/x/status` -> its parts. */
  #target(group: string, version: string, rest: readonly string[]): Target {
    let namespace: string | undefined;
    let parts = rest;
    if (parts[0] === 'namespaces' && parts.length > 2 && !(group === '' && parts.length === 3 && parts[2] === 'status')) {
      namespace = parts[1];
      parts = parts.slice(2);
    }
    const kind = findKindByPlural(group, parts[0]!);
    if (!kind?.versions.includes(version)) throw new ApiError(404, 'NotFound', 'the server could not find the requested resource');
    if (kind.isNamespaced && namespace === undefined && parts.length > 1) throw badRequest(`${kind.plural} are namespaced: the URL needs /namespaces/NAME/`);
    if (parts.length > 3) throw new ApiError(404, 'NotFound', 'the server could not find the requested resource');
    return { kind, version, namespace: kind.isNamespaced ? namespace : '', name: parts[1], subresource: parts[2] };
  }

  async #get(call: Call, target: Target): Promise<void> {
    if (target.subresource && target.subresource !== 'status') throw notFound(target.kind, `${target.name}/${target.subresource}`);
    const stored = await this.#options.registry.get(target.kind, target.namespace!, target.name!);
    this.#send(call, target, 200, stored.resource);
  }

  async #list(call: Call, target: Target): Promise<void> {
    const { searchParams } = call.url;
    const predicate = predicateOf(searchParams);
    if (isTrue(searchParams.get('watch')))
      return watchResources({
        ...{
          request: call.request,
          response: call.response,
          url: call.url,
          kind: target.kind,
          version: target.version,
          namespace: target.namespace,
          predicate,
        },
        refusal: () => this.#refusalOfWatch(call, target),
        onWrite: () => this.#unread.wrote(call.response),
        ...{ store: this.#options.registry.store, table: tableRequested(call), now: () => this.#now(), present: (resource) => this.#present(target, resource) },
      });
    const { items, revision } = await this.#options.registry.store.list(target.kind.group, target.kind.kind, target.namespace);
    const resources = items.map((stored) => this.#present(target, stored.resource)).filter(predicate);
    const table = tableRequested(call);
    if (table) return sendJson(call.response, 200, toTable(target.kind, resources, String(revision), table.includeObject, this.#now()));
    const apiVersion = apiVersionFor(target.kind, target.version);
    sendJson(call.response, 200, { kind: `${target.kind.kind}List`, apiVersion, metadata: { resourceVersion: String(revision) }, items: resources });
  }

  /** Why a watch that is open may not go on: its token has expired, its certificate is revoked, its role has been withdrawn or does not reach so far any more. */
  async #refusalOfWatch({ identify }: Call, { kind, namespace, subresource }: Target): Promise<ApiError | undefined> {
    try {
      const refusal = refusalOf(await identify(), { verb: 'list', kind, namespace, subresource });
      return refusal === undefined ? undefined : new ApiError(403, 'Forbidden', refusal);
    } catch (error) {
      if (error instanceof ApiError) return error;
      throw error;
    }
  }

  async #create(call: Call, target: Target): Promise<void> {
    const body = await this.#readBody(call.request);
    if (target.kind.kind === 'ServiceAccount' && target.subresource === 'token') return this.#createToken(call, target, body);
    if (target.name !== undefined) throw new ApiError(405, 'MethodNotAllowed', 'POST is only allowed on a collection');
    const namespace = target.namespace ?? namespaceOf(body);
    this.#require(call, { ...target, namespace }, 'create');
    // A new service account has no identity of more than nothing before an admin binds one; one that is bound already is checked here.
    const authorize = await this.#escalationCheck(call, target);
    authorize(namespace, nameOf(body), body);
    const stored = await this.#options.registry.create(target.kind, namespace, body, { ...this.#context(call), authorize });
    await this.#warn(call, stored.resource);
    this.#send(call, target, 201, stored.resource);
  }

  async #createToken(call: Call, target: Target, body: unknown): Promise<void> {
    const name = target.name!;
    if (name !== 'default') await this.#options.registry.get(target.kind, target.namespace!, name);
    (await this.#escalationCheck(call, target))(target.namespace!, name, undefined);
    const { seconds, audiences, isOnce } = readTokenRequest(body);
    const { token, expiresAt } = await this.#options.createToken(target.namespace!, name, audiences, seconds, isOnce);
    sendJson(call.response, 201, {
      kind: 'TokenRequest',
      apiVersion: 'authentication.k8s.io/v1',
      metadata: { name, namespace: target.namespace },
      spec: { audiences, expirationSeconds: seconds },
      status: { token, expirationTimestamp: expiresAt.toISOString() },
    });
  }

  /** authentication.k8s.io/v1 TokenReview: for others who are shown tokens of this mesh. Nothing is kept, so nothing is in the audit log. */
  async #reviewToken({ caller, request, response }: Call): Promise<void> {
    if (caller.role !== 'admin' || caller.namespaces !== undefined)
      throw new ApiError(403, 'Forbidden', `${caller.name} (${caller.role}) cannot review tokens: that is for admins`);
    const body = await this.#readBody(request);
    const { token, audiences } = readTokenReview(body);
    const status = this.#options.reviewToken && (await reviewStatus(this.#options.reviewToken, token, audiences[0]));
    sendJson(response, 201, {
      kind: 'TokenReview',
      apiVersion: 'authentication.k8s.io/v1',
      metadata: {},
      spec: { audiences },
      status: status ?? { authenticated: false },
    });
  }

  async #update(call: Call, target: Target): Promise<void> {
    requireName(target);
    const body = await this.#readBody(call.request);
    const subresource = this.#statusOrNone(target);
    const { registry } = this.#options;
    const authorize = await this.#escalationCheck(call, target);
    authorize(target.namespace!, target.name!, body);
    const context = { ...this.#context(call), authorize };
    const exists = await registry.store.get({ group: target.kind.group, kind: target.kind.kind, namespace: target.namespace!, name: target.name! });
    const stored =
      exists || subresource
        ? await registry.update(target.kind, target.namespace!, target.name!, body, context, subresource)
        : await registry.create(target.kind, target.namespace!, body, context);
    await this.#warn(call, stored.resource);
    this.#send(call, target, exists ? 200 : 201, stored.resource);
  }

  async #patch(call: Call, target: Target): Promise<void> {
    requireName(target);
    const { registry } = this.#options;
    const type = (call.request.headers['content-type'] ?? '').split(';')[0]!.trim();
    const patch = await this.#readBody(call.request);
    const subresource = this.#statusOrNone(target);
    const check = await this.#escalationCheck(call, target);
    const context = { ...this.#context(call), authorize: check };
    if (type === 'application/apply-patch+yaml' || type === 'application/apply-patch+json') {
      if (!isPlainObject(patch)) throw badRequest('an apply patch must be an object');
      if (!call.url.searchParams.get('fieldManager')) throw badRequest('fieldManager is required for an apply patch');
      const { stored, created } = await registry.apply(
        target.kind,
        target.namespace!,
        target.name!,
        patch,
        isTrue(call.url.searchParams.get('force')),
        context,
      );
      await this.#warn(call, stored.resource);
      return this.#send(call, target, created ? 201 : 200, stored.resource);
    }
    const patchers: Readonly<Record<string, (live: Resource) => unknown>> = {
      'application/merge-patch+json': (live) => mergePatch(live, patch),
      'application/strategic-merge-patch+json': (live) => strategicMergePatch(live, patch),
      'application/json-patch+json': (live) => jsonPatch(live, patch),
    };
    const patcher = Object.hasOwn(patchers, type) ? patchers[type] : undefined;
    if (!patcher)
      throw new ApiError(
        415,
        'UnsupportedMediaType',
        `the patch type ${type || '(none)'} is not supported. Supported: ${Object.keys(patchers).join(', ')}, application/apply-patch+yaml`,
      );
    const patched = (live: Resource) => {
      try {
        return patcher(this.#present(target, live));
      } catch (error) {
        if (error instanceof RangeError) throw badRequest('the patch nests objects too deeply');
        throw error;
      }
    };
    const stored = await registry.change(target.kind, target.namespace!, target.name!, patched, context, subresource);
    await this.#warn(call, stored.resource);
    this.#send(call, target, 200, stored.resource);
  }

  async #delete(call: Call, target: Target): Promise<void> {
    const body = await this.#readBody(call.request);
    const options = isPlainObject(body) ? body : {};
    const preconditions = isPlainObject(options['preconditions']) ? (options['preconditions'] as { uid?: string; resourceVersion?: string }) : {};
    const dryRun = call.url.searchParams.get('dryRun') === 'All' || (Array.isArray(options['dryRun']) && options['dryRun'].includes('All'));
    const { registry } = this.#options;
    const check = await this.#escalationCheck(call, target);
    if (target.name !== undefined) {
      if (target.kind.kind === 'ConfigMap') check(target.namespace!, target.name, undefined);
      const stored = await registry.delete(target.kind, target.namespace!, target.name, { ...preconditions, dryRun });
      if (target.kind.kind === 'Namespace' && !dryRun) await this.#emptyNamespace(target.name);
      return sendJson(call.response, 200, {
        kind: 'Status',
        apiVersion: 'v1',
        metadata: {},
        status: 'Success',
        details: { name: target.name, group: target.kind.group, kind: target.kind.plural, uid: stored.resource.metadata.uid },
      });
    }
    const predicate = predicateOf(call.url.searchParams);
    const { items } = await registry.store.list(target.kind.group, target.kind.kind, target.namespace);
    const chosen = items.filter((stored) => predicate(stored.resource));
    if (target.kind.kind === 'ConfigMap') for (const stored of chosen) check(stored.key.namespace, stored.key.name, undefined);
    for (const stored of chosen) await registry.delete(target.kind, stored.key.namespace, stored.key.name, { dryRun });
    sendJson(call.response, 200, {
      kind: `${target.kind.kind}List`,
      apiVersion: apiVersionFor(target.kind, target.version),
      metadata: { resourceVersion: String(registry.store.revision()) },
      items: chosen.map((stored) => this.#present(target, stored.resource)),
    });
  }

  /** A namespace takes what it holds with it. */
  async #emptyNamespace(namespace: string): Promise<void> {
    const { store } = this.#options.registry;
    for (const { group, kind } of await kindsInUse(store)) {
      for (const stored of (await store.list(group, kind, namespace)).items) await store.remove(stored.key);
    }
  }

  #statusOrNone(target: Target): 'status' | undefined {
    if (target.subresource === undefined) return undefined;
    if (target.subresource !== 'status' || !schemaHasStatus(target.kind)) throw notFound(target.kind, `${target.name}/${target.subresource}`);
    return 'status';
  }

  /** Warning headers, RFC 9111 section 5.5 with Kubernetes' code 299. Header values are latin1 and short. */
  async #warn(call: Call, resource: Resource): Promise<void> {
    let warnings: readonly string[] = [];
    try {
      warnings = (await this.#options.warnings?.(resource)) ?? [];
    } catch (error) {
      // The object is stored: that its warnings cannot be computed does not make the write a failure.
      this.#options.logger.error('cannot compute the warnings for a written object', {
        object: `${resource.kind} ${resource.metadata.namespace}/${resource.metadata.name}`,
        error: messageOf(error),
      });
    }
    const values = warnings.slice(0, 20).map(
      (text) =>
        `299 - "${text
          .slice(0, 1000)
          .replace(/[^\x20-\x7e]/g, '?')
          .replaceAll('\\', '\\\\')
          .replaceAll('"', '\\"')}"`,
    );
    if (values.length > 0) call.response.setHeader('warning', values);
  }

  #context(call: Call): WriteContext {
    const given = call.url.searchParams.get('fieldManager');
    if (given !== null && given.length > maxManagerLength) throw badRequest(`fieldManager may have at most ${maxManagerLength} characters`);
    const manager = given ?? (call.request.headers['user-agent'] ?? 'unknown').split('/')[0]!.slice(0, maxManagerLength);
    return { manager, origin: originOf(call.request, manager), dryRun: call.url.searchParams.get('dryRun') === 'All' };
  }

  #present(target: Target, resource: Resource): Resource {
    return { ...resource, apiVersion: apiVersionFor(target.kind, target.version) };
  }

  #send(call: Call, target: Target, status: number, resource: Resource): void {
    call.written = resource;
    const presented = this.#present(target, resource);
    const table = tableRequested(call);
    sendJson(
      call.response,
      status,
      table ? toTable(target.kind, [presented], resource.metadata.resourceVersion ?? '', table.includeObject, this.#now()) : presented,
    );
  }

  #now(): Date {
    return this.#options.now?.() ?? new Date();
  }
}

const verbs: Readonly<Record<string, 'get' | 'create' | 'update' | 'patch' | 'delete'>> = {
  GET: 'get',
  POST: 'create',
  PUT: 'update',
  PATCH: 'patch',
  DELETE: 'delete',
};

const sameUser: Caller = { name: 'the user of this machine', role: 'admin', namespaces: undefined, by: 'unix socket' };

const addressOf = ({ socket }: IncomingMessage) => (socket.remoteAddress === undefined ? 'unix' : `${socket.remoteAddress}:${socket.remotePort}`);

async function kindsInUse(store: ResourceRegistry['store']): Promise<{ group: string; kind: string }[]> {
  const used: { group: string; kind: string }[] = [];
  for (const kind of kinds) if (kind.isNamespaced && (await store.list(kind.group, kind.kind)).items.length > 0) used.push(kind);
  return used;
}

function requireName(target: Target): void {
  if (target.name === undefined) throw new ApiError(405, 'MethodNotAllowed', `the URL needs the name of one of the ${target.kind.plural}`);
}

function tableRequested(call: Call): { includeObject: string } | undefined {
  const accept = call.request.headers.accept ?? '';
  return accept.split(',')[0]!.includes('as=Table') ? { includeObject: call.url.searchParams.get('includeObject') ?? 'Metadata' } : undefined;
}
