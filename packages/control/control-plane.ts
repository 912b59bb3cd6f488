import { randomBytes, X509Certificate } from 'node:crypto';
import { once } from 'node:events';
import { chmodSync, mkdirSync, readFileSync } from 'node:fs';
import { createSecureServer, createServer, type Http2SecureServer, type Http2Server } from 'node:http2';
import { type AddressInfo, isIPv4 } from 'node:net';
import { join } from 'node:path';
import { createRegistry } from '@bufbuild/protobuf';
import { type ConnectRouter, createContextValues } from '@connectrpc/connect';
import { findKind, type Resource } from '@mizzen/api';
import { errorBoundary, internalErrors, type Logger, MizzenError, messageOf, tlsDefaults, unattributedErrors, usableRoots } from '@mizzen/common';
import { timeProblem } from '@mizzen/common/certificate-time';
import { ConnectionGuard, maxHandshakeMs } from '@mizzen/common/connection-guard';
import { FetchPolicy } from '@mizzen/common/fetch-policy';
import { grpcHandler, grpcServerSettings } from '@mizzen/common/grpc-server';
import { PeerValidity } from '@mizzen/common/peer-validity';
import { ServerConnections } from '@mizzen/common/server-connections';
import { AggregatedDiscoveryService } from '@mizzen/envoy-api/gen/envoy/service/discovery/v3/ads_pb.js';
import { RateLimitService } from '@mizzen/envoy-api/gen/envoy/service/ratelimit/v3/rls_pb.js';
import { CertificateController } from './certificates/certificate-controller.ts';
import { transportPeerKey, transportPeerOf } from './citadel/caller.ts';
import type { CertificateAuthority } from './citadel/certificate-authority.ts';
import { Citadel, type CitadelOptions } from './citadel/citadel.ts';
import { readPrivateFile, writePrivateFile } from './citadel/private-file.ts';
import { RecentRefusals } from './citadel/recent-refusals.ts';
import { defaultTrustDomain, parseSpiffeUri } from './citadel/spiffe-identity.ts';
import type { TokenIssuer } from './citadel/token-issuer.ts';
import { controlMetrics } from './control-metrics.ts';
import { namespacesProblem, refusedBindings } from './galley/api/access-bindings.ts';
import { type Caller, type Role, roles, sees } from './galley/api/access-control.ts';
import { ApiServer } from './galley/api/api-server.ts';
import { AuditLog } from './galley/api/audit-log.ts';
import { Authenticator } from './galley/api/authenticator.ts';
import { DirectorySource } from './galley/directory-source.ts';
import { ResourceRegistry } from './galley/resource-registry.ts';
import { SqliteStore } from './galley/sqlite-store.ts';
import { corsWarnings } from './pilot/analysis/cors-credentials.ts';
import { refusedUrl } from './pilot/analysis/fetched-urls.ts';
import { describeFinding, type Finding } from './pilot/analysis/finding.ts';
import { notEnforced, notImplementedWarnings } from './pilot/analysis/not-implemented.ts';
import { unservedTarget } from './pilot/analysis/policy-targets.ts';
import { controllerName } from './pilot/gateway-api/types.ts';
import { Pilot } from './pilot/pilot.ts';
import { routeOwnershipConfig } from './pilot/route-ownership.ts';
import { rootNamespace } from './pilot/snapshot.ts';
import { discoveryService } from './pilot/xds/discovery-service.ts';
import { MemoryCounters } from './rate-limit/limit-counters.ts';
import { rateLimitService } from './rate-limit/rate-limit-service.ts';
import { type AuthorityStatus, authorityStatus, type RotationStep, takeStep } from './root-rotation.ts';

const serving = errorBoundary('grpc.connection');
const validating = errorBoundary('control.certificates');
const checking = errorBoundary('store.check');

/** The control plane: galley, pilot and citadel over one store, in one process. */
export interface ControlPlaneOptions extends Pick<CitadelOptions, 'issuer' | 'forwarders' | 'tokenSources' | 'bundleRefreshSeconds'> {
  /** Where state is kept: keys, tokens, the store. Created with mode 0700. */
  readonly home: string;
  readonly host?: string;
  /** For xDS and the CA, when they listen elsewhere than the API. */
  readonly xdsHost?: string | undefined;
  /** 0 chooses a free port. */
  readonly apiPort?: number;
  readonly xdsPort?: number;
  /** The plain xDS port, loopback only; undefined: none. */
  readonly xdsPlainPort?: number | undefined;
  readonly trustDomain?: string;
  /** A folder of resources to follow. */
  readonly directory?: string;
  readonly onDirectoryProblems?: (problems: readonly string[]) => void;
  readonly logger: Logger;
  /** Where limits of the whole mesh are counted: a Redis server; undefined: in this process. */
  readonly rateLimitRedis?: string | undefined;
  /** `host:port` of the mesh's own broker, for components of type pubsub.mizzen that name none. */
  readonly brokerAddress?: string | undefined;
  readonly debounceMs?: number;
  readonly registrationGraceMs?: number;
  /** The first wait after an ACME server has given no certificate. */
  readonly certificateRetryMs?: number;
  /** How often the file of the store is compared with the configuration in memory. */
  readonly storeCheckMs?: number;
  /** Hosts of this machine, or link-local ones, that URLs in configuration may lead to. */
  readonly allowedFetchHosts?: readonly string[];
}

export interface ControlPlane {
  readonly apiPort: number;
  readonly xdsPort: number;
  readonly xdsPlainPort: number | undefined;
  readonly pilot: Pilot;
  readonly registry: ResourceRegistry;
  readonly authority: CertificateAuthority;
  readonly tokens: TokenIssuer;
  close(): Promise<void>;
}

/** The files in a mesh's home that the command line and sidecars read. */
export function homeFiles(home: string) {
  return {
    certificates: join(home, 'ca'),
    store: join(home, 'store.sqlite'),
    adminToken: join(home, 'admin-token'),
    rootCertificate: join(home, 'root-cert.pem'),
    endpoints: join(home, 'control.json'),
    auditLog: join(home, 'audit.log'),
    apiSocket: join(home, 'api.sock'),
  };
}

/** Where other trust domains find what this one is known by (SPIFFE Federation). */
export const bundlePath = '/.well-known/spiffe-bundle';

const serverCertificateSeconds = 30 * 86_400;
/** The longest life of a token for the API: ten years. */
const maxAccessSeconds = 10 * 365 * 86_400;
/** Connections whose certificate has expired in the meantime end. */
const sweepMs = 30_000;
const endInvalidMs = 500;
const defaultStoreCheckMs = 30_000;
const serverRenewMs = 7 * 86_400_000;

export async function startControlPlane(options: ControlPlaneOptions): Promise<ControlPlane> {
  const { logger } = options;
  const host = options.host ?? '127.0.0.1';
  const xdsHost = options.xdsHost ?? host;
  const files = homeFiles(options.home);
  mkdirSync(options.home, { recursive: true, mode: 0o700 });
  chmodSync(options.home, 0o700);
  const trustDomain = options.trustDomain ?? defaultTrustDomain;
  const fetchPolicy = new FetchPolicy(options.allowedFetchHosts);
  const citadel = await Citadel.open({
    ...{ directory: files.certificates, trustDomain, logger: logger.child('citadel'), onTrustChanged: () => pilot.refreshSoon() },
    fetchPolicy,
    ...{ issuer: options.issuer, forwarders: options.forwarders, tokenSources: options.tokenSources, bundleRefreshSeconds: options.bundleRefreshSeconds },
  });
  const { authority, tokens, trust } = citadel;
  // A control plane starts on a full disk where nothing has to be written.
  if (!isContentOf(files.rootCertificate, citadel.roots)) writePrivateFile(files.rootCertificate, citadel.roots);
  let adminToken = readPrivateFile(files.adminToken)?.trim();
  if (!adminToken) {
    adminToken = randomBytes(32).toString('hex');
    writePrivateFile(files.adminToken, `${adminToken}\n`);
  }

  const store = new SqliteStore(files.store, { logger: logger.child('galley') });
  const registry = new ResourceRegistry(store, async (resource, stored) => {
    return refusedBindings(resource) ?? notEnforced(resource) ?? refusedUrl(resource, fetchPolicy) ?? (await unservedTarget(resource, stored));
  });
  await createNamespaces(registry);
  await createGatewayClasses(registry);
  const pilot: Pilot = new Pilot({
    registry,
    fetchPolicy,
    trustDomain,
    trust,
    logger: logger.child('pilot'),
    filesRoot: options.directory,
    brokerAddress: options.brokerAddress,
    ...(options.debounceMs === undefined ? {} : { debounceMs: options.debounceMs }),
    ...(options.registrationGraceMs === undefined ? {} : { registrationGraceMs: options.registrationGraceMs }),
  });
  let directory: DirectorySource | undefined;
  let isStarted = false;
  if (options.directory) {
    directory = new DirectorySource({
      directory: options.directory,
      registry,
      logger: logger.child('galley'),
      onPass: () => isStarted && pilot.refreshSoon(),
      ...(options.onDirectoryProblems ? { onProblems: options.onDirectoryProblems } : {}),
    });
    await directory.start();
  }
  await pilot.start();
  isStarted = true;
  const counters =
    options.rateLimitRedis === undefined
      ? new MemoryCounters()
      : new (await import('./rate-limit/redis-counters.ts')).RedisCounters(options.rateLimitRedis, logger.child('rate-limit'));

  const names = {
    dns: ['mizzen-control', 'istiod.istio-system.svc', 'localhost'],
    ip: ['127.0.0.1', '::1', ...[...new Set([host, xdsHost])].filter((address) => isIPv4(address) && address !== '127.0.0.1' && address !== '0.0.0.0')],
  };
  const certificate = await authority.issueServer(names, serverCertificateSeconds);
  const routes = (router: ConnectRouter) => {
    router.service(AggregatedDiscoveryService, discoveryService(pilot, authority, citadel.workloadTokens, logger.child('pilot')));
    router.service(
      RateLimitService,
      rateLimitService(counters, (context) => citadel.admit(context)),
    );
    citadel.routes(router);
  };
  const validity = new PeerValidity({
    isRevoked: (serial) => citadel.revocations.isRevoked(serial),
    isTrustedDomain: (domain) => domain === trustDomain,
    clock: 'the clock of the control plane',
  });
  const refusals = new RecentRefusals(logger.child('citadel'));
  const handler = grpcHandler({
    routes,
    contextValues: (request) => createContextValues().set(transportPeerKey, transportPeerOf(request as never, peerDependencies)),
  });
  const secure = serving.own(
    createSecureServer(
      {
        ...{ cert: certificate.cert, key: certificate.key, ca: usableRoots(citadel.roots).roots, requestCert: true, rejectUnauthorized: false },
        ...{ handshakeTimeout: maxHandshakeMs, ...tlsDefaults, ...grpcServerSettings },
      },
      handler,
    ),
  );
  const guard = new ConnectionGuard(secure);
  const peerDependencies = { validity, guard, refusals, authority: { trustDomain, roots: () => citadel.roots } };
  // A client that does not know this control plane's root closes the handshake with an alert.
  secure.on('tlsClientError', (error, socket) => {
    if (!/unknown ca|bad certificate|certificate expired/i.test(error.message)) return;
    const reason = `the client does not accept the certificate of this control plane (${error.message.slice(0, 100)}): give it the current root certificate, and compare its clock with the clock of the control plane`;
    refusals.add(undefined, `${socket.remoteAddress ?? 'unknown'}:${socket.remotePort ?? 0}`, reason);
  });
  const plain = options.xdsPlainPort === undefined ? undefined : serving.own(createServer(grpcServerSettings, handler));
  // The plain port proves nothing; a request there is worth a place of its own.
  const plainGuard = plain && new ConnectionGuard(plain);
  plain?.on('stream', ({ session }) => session !== undefined && plainGuard?.prove(session.socket, 'plain'));
  secure.on('secureConnection', (socket) => {
    const problem = validity.follow(socket);
    const certificate = socket.authorized && problem === undefined ? socket.getPeerX509Certificate() : undefined;
    if (certificate !== undefined) guard.prove(socket, certificate.subjectAltName ?? certificate.fingerprint256);
  });
  const connections = [secure, plain].flatMap((server) => (server === undefined ? [] : [new ServerConnections(server)]));
  const authenticator = new Authenticator({
    adminToken,
    verifyToken: (token) => tokens.verifyAccess(token),
    store,
    validity,
  });
  const audit = new AuditLog(files.auditLog, logger.child('galley'));
  const api = new ApiServer({
    registry,
    host,
    port: options.apiPort ?? 15080,
    certificate: { ...certificate, ca: usableRoots(citadel.roots).roots },
    authenticator,
    // A forwarder may ask for the identities of others.
    heldRoles: async () => [...(await authenticator.heldRoles()), ...citadel.forwarders()],
    audit,
    socketPath: files.apiSocket,
    onConnection: (socket) => void validity.follow(socket),
    logger: logger.child('galley'),
    createToken: (namespace, serviceAccount, audiences, seconds, isOnce) => tokens.issue(namespace, serviceAccount, audiences, seconds, isOnce),
    reviewToken: async (token, audience) => {
      const { namespace, serviceAccount } = await tokens.verify(token, false, audience);
      return `system:serviceaccount:${namespace}:${serviceAccount}`;
    },
    metrics: () => controlMetrics(pilot),
    published: { [bundlePath]: () => citadel.bundle.document() },
    meshState: async (path, caller) =>
      path.join('/') === 'ca'
        ? {
            ...visibleTo(caller, authorityStatus(authority, pilot.proxies())),
            federation: trust.status(),
            revoked: citadel.revocations.list().filter(({ identity }) => sees(caller, parseSpiffeUri(identity)?.namespace ?? '')),
            trustBundle: citadel.roots,
          }
        : meshState(pilot, () => [...refusalFindings(refusals), ...storeFindings(store)], path, caller),
    meshAction: async (path, body) => {
      if (path.join('/') === 'access') {
        const { user, role, namespaces, seconds, ...others } = body;
        // What is not understood could be what was meant to limit the role.
        const [unknown] = Object.keys(others);
        if (unknown !== undefined)
          throw new MizzenError('bad-request', `the field ${JSON.stringify(unknown.slice(0, 50))} is not known: user, role, namespaces, seconds`);
        if (typeof user !== 'string' || !/^[\w.@-]{1,100}$/.test(user))
          throw new MizzenError('bad-request', 'user: a name of letters, digits and . @ _ - is needed');
        if (!roles.includes(role as Role)) throw new MizzenError('bad-request', `role: one of ${roles.join(', ')} is needed`);
        const problem = namespaces === undefined ? undefined : namespacesProblem(namespaces);
        if (problem !== undefined) throw new MizzenError('bad-request', problem);
        if (seconds !== undefined && !(typeof seconds === 'number' && seconds > 0 && seconds <= maxAccessSeconds))
          throw new MizzenError('bad-request', `seconds: a number from 1 to ${maxAccessSeconds} is needed`);
        const { token, expiresAt } = await tokens.issueAccess(
          user,
          role as Role,
          namespaces as readonly string[] | undefined,
          typeof seconds === 'number' ? seconds : 86_400,
        );
        return { token, expiresAt: expiresAt.toISOString() };
      }
      if (path.join('/') === 'ca/revoke') {
        const { serial, identity } = body;
        const which = typeof serial === 'string' ? { serial } : typeof identity === 'string' ? { identity } : undefined;
        if (which === undefined) throw new MizzenError('bad-request', 'serial or identity: which certificates?');
        const revoked = citadel.revocations.revoke(which);
        await citadel.renewCrl();
        await pilot.refresh();
        const serials = new Set(revoked.map((each) => each.serial));
        pilot.endStreamsOf(serials);
        // Requests on open connections are refused from now on; the connections end when their streams have said why.
        validating.after(endInvalidMs, () => validity.endInvalid(serials)).unref();
        return { revoked };
      }
      if (path.join('/') !== 'ca/rotate') return undefined;
      await takeStep(authority, pilot.proxies(), body['step'] as RotationStep, body['force'] === true);
      return authorityStatus(authority, pilot.proxies());
    },
    warnings: async (resource) => [...notImplementedWarnings(resource), ...corsWarnings(resource), ...(await pendingFindings(pilot, resource))],
  });
  let serverCertificate = new X509Certificate(certificate.cert);
  const renewServers = async () => {
    const newer = await authority.issueServer(names, serverCertificateSeconds);
    secure.setSecureContext({ cert: newer.cert, key: newer.key, ca: usableRoots(citadel.roots).roots, ...tlsDefaults });
    api.renewCertificate({ ...newer, ca: usableRoots(citadel.roots).roots });
    serverCertificate = new X509Certificate(newer.cert);
  };
  const tryToRenewServers = () => {
    renewServers().catch((error: unknown) =>
      logger.error("the servers' own certificate could not be renewed; it will be tried again", { error: messageOf(error) }),
    );
  };
  /** The clock was set: the certificate is of a time that is not yet, or no longer. */
  const followClock = () => {
    const options = { whose: 'the certificate of this control plane', clock: 'the clock of this machine', nowMs: Date.now(), toleranceMs: 0 };
    const problem = timeProblem(serverCertificate, options);
    if (problem === undefined) return;
    logger.warn(`${problem}. It is renewed`);
    tryToRenewServers();
  };
  const renewal = validating.every(serverRenewMs, tryToRenewServers).unref();
  authority.onChange(async () => {
    writePrivateFile(files.rootCertificate, citadel.roots);
    await citadel.renewCrl();
    await renewServers();
    await pilot.refresh();
  });
  const certificates = new CertificateController({
    ...{ registry, logger: logger.child('certificates'), fetchPolicy, answer: (challenges) => pilot.answerChallenges(challenges) },
    proofProblem: (namespace, host) => pilot.proofProblem(namespace, host),
    ...(options.certificateRetryMs === undefined ? {} : { retryMs: options.certificateRetryMs }),
  });
  await certificates.start();
  const endpoints = new EndpointsFile(files.endpoints, logger.child('galley'));
  let closing: Promise<void> | undefined;
  const sweep = validating
    .every(sweepMs, () => {
      validity.endInvalid();
      followClock();
    })
    .unref();
  let diskCheck: NodeJS.Timeout | undefined;
  const checkDiskLater = () => {
    if (closing !== undefined) return;
    const check = () => {
      store.check();
      citadel.flushLog();
      audit.flush();
      endpoints.flush();
      checkDiskLater();
    };
    diskCheck = checking.after(options.storeCheckMs ?? defaultStoreCheckMs, check, checkDiskLater).unref();
  };
  checkDiskLater();
  const close = async () => {
    clearInterval(sweep);
    clearTimeout(diskCheck);
    clearInterval(renewal);
    citadel.close();
    certificates.close();
    await api.close();
    await directory?.close();
    await pilot.close();
    await counters.close();
    await Promise.all(connections.map((each) => each.close()));
    await store.close();
  };
  try {
    const xdsPort = await listen(secure, options.xdsPort ?? 15012, xdsHost, 'the xDS server', '--xds-port');
    const xdsPlainPort = plain && (await listen(plain, options.xdsPlainPort!, '127.0.0.1', 'the plain xDS server', '--xds-plain-port'));
    const apiPort = await api.listen();
    endpoints.write({ api: `https://127.0.0.1:${apiPort}`, xds: `${options.xdsHost ?? '127.0.0.1'}:${xdsPort}`, trustDomain, pid: process.pid });
    return { apiPort, xdsPort, xdsPlainPort, pilot, registry, authority, tokens, close: () => (closing ??= close()) };
  } catch (error) {
    await close();
    throw error;
  }
}

function isContentOf(path: string, content: string): boolean {
  try {
    return readFileSync(path, 'utf8') === content;
  } catch {
    return false;
  }
}

/** Where commands of this machine find the control plane. A full disk puts it off, and nothing else. */
class EndpointsFile {
  readonly #path: string;
  readonly #logger: Logger;
  #unwritten: string | undefined;

  constructor(path: string, logger: Logger) {
    this.#path = path;
    this.#logger = logger;
    this.#unwritten = undefined;
  }

  write(content: object): void {
    this.#unwritten = `${JSON.stringify(content)}\n`;
    this.flush();
  }

  flush(): void {
    if (this.#unwritten === undefined) return;
    try {
      writePrivateFile(this.#path, this.#unwritten);
      this.#unwritten = undefined;
    } catch (error) {
      this.#logger.error('the addresses of this control plane cannot be written: commands may not find it', { path: this.#path, error: messageOf(error) });
    }
  }
}

async function listen(server: Http2Server | Http2SecureServer, port: number, host: string, what: string, option: string): Promise<number> {
  server.listen(port, host);
  try {
    await once(server, 'listening');
  } catch (error) {
    const inUse = (error as NodeJS.ErrnoException).code === 'EADDRINUSE';
    throw new MizzenError(
      'port-in-use',
      `${what} cannot listen: ${inUse ? `the port is in use. Stop the other process (perhaps another mizzen), or choose another port with ${option}.` : messageOf(error)}`,
      `${host}:${port}`,
    );
  }
  return (server.address() as AddressInfo).port;
}

/** Gateways of these classes are ours: of Mizzen's own, and of Istio's, which its users' objects name. */
async function createGatewayClasses(registry: ResourceRegistry): Promise<void> {
  const kind = findKind('gateway.networking.k8s.io', 'GatewayClass')!;
  for (const name of ['mizzen', 'istio']) {
    if (await registry.store.get({ group: kind.group, kind: kind.kind, namespace: '', name })) continue;
    const value = { apiVersion: 'gateway.networking.k8s.io/v1', kind: 'GatewayClass', metadata: { name }, spec: { controllerName } };
    await registry.create(kind, '', value, { manager: 'mizzen', origin: { source: 'api', name: 'mizzen' } });
  }
}

async function createNamespaces(registry: ResourceRegistry): Promise<void> {
  const kind = findKind('', 'Namespace')!;
  const context = { manager: 'mizzen', origin: { source: 'api', name: 'mizzen' } } as const;
  const isNewMesh = !(await registry.store.get({ group: '', kind: 'Namespace', namespace: '', name: 'default' }));
  for (const name of ['default', rootNamespace, routeOwnershipConfig.namespace])
    if (!(await registry.store.get({ group: '', kind: 'Namespace', namespace: '', name })))
      await registry.create(kind, '', { apiVersion: 'v1', kind: 'Namespace', metadata: { name } }, context);
  if (!isNewMesh) return;
  const { namespace, name, key, initial } = routeOwnershipConfig;
  const value = { apiVersion: 'v1', kind: 'ConfigMap', metadata: { name, namespace }, data: { [key]: initial } };
  await registry.create(findKind('', 'ConfigMap')!, namespace, value, context);
}

/** The proxies that a change of roots waits for are named to those who see their namespace. */
function visibleTo(caller: Caller, status: AuthorityStatus): AuthorityStatus {
  return { ...status, waitsFor: status.waitsFor.filter((proxy) => sees(caller, proxy.split('/')[0] ?? '')) };
}

/** Callers that were refused of late. They are not proved to be what they claim: warnings only. */
function refusalFindings(refusals: RecentRefusals): Finding[] {
  return refusals.list().map(({ caller, reason, atMs }) => {
    const [, namespace, account] = /^spiffe:\/\/[^/]+\/ns\/([^/]+)\/sa\/([^/]+)$/.exec(caller) ?? [];
    const object = namespace === undefined ? `Caller ${caller}` : `ServiceAccount ${namespace}/${account}`;
    const message = `${caller} was refused by the control plane at ${new Date(atMs).toISOString()}: ${reason}.`;
    return { code: 'MZ0022', level: 'warning', object, path: '', place: '', message };
  });
}

/** A store that refuses writes concerns the whole mesh. */
function storeFindings(store: SqliteStore): Finding[] {
  return store.problems().map(({ level, message }) => ({ code: 'MZ0026', level, object: 'ConfigurationStore', path: '', place: '', message: `${message}.` }));
}

/** Below /mizzen/v1/: `proxies`, `proxies/NAMESPACE/NAME/TYPE`, `findings`. */
async function meshState(pilot: Pilot, otherFindings: () => readonly Finding[], path: readonly string[], caller: Caller): Promise<unknown> {
  if (path[0] === 'proxies' && path.length === 1) return { proxies: pilot.proxies().filter(({ namespace }) => sees(caller, namespace)) };
  if (path[0] === 'findings' && path.length === 1)
    return {
      findings: [...pilot.findings, ...otherFindings()].filter(({ object }) => sees(caller, object.split(' ')[1]?.split('/')[0] ?? '')),
      // Names of places in the code, none of objects: for every caller, as in the metrics.
      internalErrors: Object.fromEntries(internalErrors()),
      unattributedErrors: unattributedErrors(),
    };
  if (path[0] === 'proxies' && path.length === 4 && sees(caller, path[1]!)) {
    const connection = pilot.connections().find(({ view }) => view.namespace === path[1] && view.name === path[2]);
    const schema = schemas[path[3] as keyof typeof schemas];
    if (!connection || !schema || path[3] === 'secret') return undefined;
    // Read when a person asks: the descriptors of all messages are many.
    const [{ knownMessages }, { redactedAny }] = await Promise.all([import('@mizzen/envoy-api/known-messages'), import('@mizzen/envoy-api/redact')]);
    const registry = createRegistry(...knownMessages);
    return {
      resources: connection
        .sent(path[3] as keyof typeof schemas)
        .map((any) => ({ typeUrl: any.typeUrl, bytes: Buffer.from(redactedAny(any, registry).value).toString('base64') })),
    };
  }
  return undefined;
}

const schemas = { cluster: true, endpoint: true, listener: true, route: true, secret: true } as const;

/** Kinds that are written in masses, as inventory, and that no finding is about. A snapshot is not built for each write of one. */
const inventory = new Set([...['Namespace', 'Service', 'ServiceAccount', 'Endpoints', 'EndpointSlice', 'Secret', 'Pod', 'Event', 'Lease', 'WorkloadEntry']]);

/** Proxies have this long to answer, where what they say of an object is told to its writer. */
const maxVerdictMs = 2_000;

/** What a resource that was just written leads to, once pilot has seen it. */
async function pendingFindings(pilot: Pilot, resource: Resource): Promise<string[]> {
  if (inventory.has(resource.kind)) return [];
  await pilot.refresh();
  // Only a proxy knows whether it takes what a patch makes of its resources.
  if (resource.kind === 'EnvoyFilter') await pilot.answered(maxVerdictMs);
  const { namespace, name } = resource.metadata;
  const object = `${resource.kind} ${namespace ? `${namespace}/` : ''}${name}`;
  return pilot.findings.filter((finding) => finding.object === object).map(describeFinding);
}
