import { createPrivateKey, X509Certificate } from 'node:crypto';
import { once } from 'node:events';
import { chmodSync, mkdirSync, renameSync, rmSync, statSync } from 'node:fs';
import { createServer as createHttp2Server, type Http2Server, type Http2ServerRequest, type ServerHttp2Session } from 'node:http2';
import { createServer, type Server, type Socket } from 'node:net';
import { dirname } from 'node:path';
import { create, type MessageInitShape } from '@bufbuild/protobuf';
import { Code, ConnectError, createContextKey, createContextValues, type HandlerContext, type ServiceImpl } from '@connectrpc/connect';
import { errorBoundary, type Logger, MizzenError, messageOf, PushQueue, pemCertificates } from '@mizzen/common';
import { ConnectionGuard } from '@mizzen/common/connection-guard';
import { grpcHandler, grpcServerSettings } from '@mizzen/common/grpc-server';
import { ServerConnections } from '@mizzen/common/server-connections';
import { SvidService } from '@mizzen/envoy-api/gen/mizzen/citadel/v1/svid_pb.js';
import {
  type JWTBundlesResponseSchema,
  JWTSVIDResponseSchema,
  SpiffeWorkloadAPI,
  ValidateJWTSVIDResponseSchema,
  type X509BundlesResponseSchema,
  type X509SVIDResponseSchema,
} from '@mizzen/envoy-api/gen/spiffe/workload_pb.js';
import { KeySet } from '../jwt/key-set.ts';
import { TokenVerifier } from '../jwt/token-verifier.ts';
import { maxSocketPathLength } from '../proxy-config.ts';
import { rootSecretName } from '../tls/secret-names.ts';
import { rootsOfDomain, type SecretStore } from '../tls/secret-store.ts';
import type { IdentityAgent } from '../xds/identity-agent.ts';
import type { Attestation, WorkloadAttestor } from './process-attestor.ts';
import { isWorkloadOf } from './svid-subject.ts';

const boundary = errorBoundary('spiffe.connection');
/** After an exception of this proxy's own. */
const retryMs = 1_000;

export interface WorkloadApiOptions {
  readonly socketPath: string;
  /** 0600 unless it says otherwise. */
  readonly socketMode?: number;
  readonly attestor: WorkloadAttestor;
  readonly trustDomain: string;
  readonly identity: IdentityAgent;
  readonly secrets: SecretStore;
  readonly logger: Logger;
}

/** A connection, and who is at its other end. */
interface Admitted {
  readonly attestation: Attestation;
  readonly socket: Socket;
}

interface X509Svid {
  readonly chain: Uint8Array;
  readonly key: Uint8Array;
}

/** Connections of processes that have no identity (yet) lose their places to newer ones. */
const connectionLimits = { maxConnections: 1_000, maxUnproven: 500, maxUnprovenPerPeer: 500, maxPerIdentity: 250 };
const sessionKey = createContextKey<ServerHttp2Session | undefined>(undefined, { description: 'HTTP/2 session' });

/** The SPIFFE Workload API: any SPIFFE library takes X.509-SVIDs, JWT-SVIDs and trust bundles from it, for the identities of whoever is at the other end of the socket. */
export class WorkloadApi {
  readonly #options: WorkloadApiOptions;
  readonly #server: Server;
  readonly #http2: Http2Server;
  readonly #sockets: Set<Socket>;
  readonly #attestations: WeakMap<ServerHttp2Session, Admitted>;
  readonly #guard: ConnectionGuard;
  /** Of the connection that is being given to the HTTP/2 server. */
  #admitted: Admitted | undefined;
  readonly #connections: ServerConnections;
  /** Streams to tell when something changes. */
  readonly #watchers: Set<() => void>;
  /** By SPIFFE id. */
  readonly #svids: Map<string, Promise<X509Svid>>;
  readonly #timers: Map<string, NodeJS.Timeout>;
  #stopListening: (() => void) | undefined;
  /** Of the socket. */
  #inode: number | undefined;

  constructor(options: WorkloadApiOptions) {
    this.#options = options;
    this.#watchers = new Set();
    this.#svids = new Map();
    this.#timers = new Map();
    this.#stopListening = undefined;
    this.#inode = undefined;
    this.#attestations = new WeakMap();
    this.#sockets = new Set();
    this.#admitted = undefined;
    this.#http2 = boundary.own(
      createHttp2Server(
        grpcServerSettings,
        grpcHandler({
          routes: (router) => void router.service(SpiffeWorkloadAPI, this.#service()),
          contextValues: (request) => createContextValues().set(sessionKey, (request as Http2ServerRequest).stream.session as ServerHttp2Session),
        }),
      ),
    );
    this.#connections = new ServerConnections(this.#http2);
    this.#http2.on('session', (session) => this.#attestations.set(session, this.#admitted!));
    this.#server = boundary.own(
      createServer({ pauseOnConnect: true }, (socket) => {
        this.#sockets.add(socket);
        boundary.own(socket).on('close', () => this.#sockets.delete(socket));
        boundary.start(
          () => this.#accept(socket),
          () => socket.destroy(),
        );
      }),
    );
    this.#guard = new ConnectionGuard(this.#server, connectionLimits);
  }

  /** The peer is attested before anything is read: attestors may pass the socket to a child. */
  async #accept(socket: Socket): Promise<void> {
    const attestation = await this.#options.attestor.attest(socket);
    if (socket.destroyed) return;
    this.#admitted = { attestation, socket };
    this.#http2.emit('connection', socket);
    socket.resume();
  }

  async listen(): Promise<void> {
    const { socketPath, socketMode, secrets } = this.#options;
    const early = `${socketPath}.${process.pid}`;
    if (Buffer.byteLength(early) > maxSocketPathLength)
      throw new MizzenError('path-too-long', `a Unix socket's path may have ${maxSocketPathLength} bytes: choose a shorter home for the mesh`, socketPath);
    mkdirSync(dirname(socketPath), { recursive: true, mode: socketMode === undefined ? 0o700 : 0o755 });
    // Under another name first: a server that closes removes the name it began with, and this may be the successor of one that still runs.
    rmSync(early, { force: true });
    this.#server.listen(early);
    await once(this.#server, 'listening');
    chmodSync(early, socketMode ?? 0o600);
    this.#inode = statSync(early).ino;
    renameSync(early, socketPath);
    // Another root: certificates of the one before will not be trusted much longer.
    this.#stopListening = secrets.onChange((name) => name === rootSecretName && this.#renewAll());
  }

  async close(): Promise<void> {
    for (const timer of this.#timers.values()) clearTimeout(timer);
    this.#stopListening?.();
    if (!this.#server.listening) return;
    const closed = once(this.#server, 'close');
    this.#server.close();
    await this.#connections.close();
    for (const socket of this.#sockets) socket.destroy();
    await closed;
    if (statSync(this.#options.socketPath, { throwIfNoEntry: false })?.ino === this.#inode) rmSync(this.#options.socketPath, { force: true });
  }

  #service(): ServiceImpl<typeof SpiffeWorkloadAPI> {
    const { trustDomain, identity } = this.#options;
    const domainId = `spiffe://${trustDomain}`;
    return {
      fetchX509SVID: (_request, context) =>
        this.#stream(context, async (identities): Promise<MessageInitShape<typeof X509SVIDResponseSchema>> => {
          const { [domainId]: bundle, ...federatedBundles } = this.#bundles();
          const svids = identities.map(async (spiffeId) => {
            const { chain, key } = await this.#current(spiffeId);
            return { spiffeId, x509Svid: chain, x509SvidKey: key, bundle: bundle! };
          });
          return { svids: await Promise.all(svids), federatedBundles };
        }),
      fetchX509Bundles: (_request, context) =>
        this.#stream(context, async (): Promise<MessageInitShape<typeof X509BundlesResponseSchema>> => ({ bundles: this.#bundles() })),
      fetchJWTSVID: ({ audience, spiffeId: wanted }, context) =>
        this.#respond(context, async (identities) => {
          if (audience.length === 0) throw new ConnectError('for whom is the token? An audience is needed', Code.InvalidArgument);
          if (wanted !== '' && !identities.includes(wanted))
            throw new ConnectError(`this workload is ${identities.join(', ')}, not ${wanted}`, Code.PermissionDenied);
          const { client } = identity.client(SvidService);
          const svids = (wanted === '' ? identities : [wanted]).map(async (spiffeId) => {
            const { token } = await client.createToken({ audiences: audience, identity: spiffeId });
            return { spiffeId, svid: token };
          });
          return create(JWTSVIDResponseSchema, { svids: await Promise.all(svids) });
        }),
      fetchJWTBundles: (_request, context) =>
        this.#stream(
          context,
          async (): Promise<MessageInitShape<typeof JWTBundlesResponseSchema>> => ({
            bundles: Object.fromEntries([...(await this.#jwtKeys())].map(([domain, keys]) => [`spiffe://${domain}`, Buffer.from(keys)])),
          }),
        ),
      validateJWTSVID: ({ audience, svid }, context) =>
        this.#respond(context, async () => {
          if (audience === '' || svid === '') throw new ConnectError('audience and svid are needed', Code.InvalidArgument);
          // The keys of one trust domain say nothing about identities of another.
          const results = [...(await this.#jwtKeys())].map(([domain, keys]) => {
            const verifier = new TokenVerifier({
              ...{ issuer: '', audiences: [audience], fitsSubject: (subject: string) => isWorkloadOf(domain, subject), requiresExpiration: true },
              ...{ maxLifetimeSeconds: undefined, clockSkewSeconds: 60 },
            });
            return verifier.verify(svid, KeySet.read(keys), Date.now());
          });
          const good = results.find((result) => 'token' in result);
          const [first] = results;
          if (good === undefined)
            throw new ConnectError(
              `the token is not good: ${first && 'problem' in first ? first.problem.replaceAll('_', ' ') : 'no keys'}`,
              Code.InvalidArgument,
            );
          const { claims } = good.token;
          return create(ValidateJWTSVIDResponseSchema, { spiffeId: String(claims['sub']), claims: claims as never });
        }),
    };
  }

  /** Whoever was tricked into a request cannot set the header (SPIFFE Workload Endpoint, section 3.1). */
  async #admit(context: HandlerContext): Promise<readonly string[]> {
    if (context.requestHeader.get('workload.spiffe.io') !== 'true')
      throw new ConnectError('the metadata workload.spiffe.io: true is missing (SPIFFE Workload Endpoint, section 3.1)', Code.InvalidArgument);
    const admitted = this.#attestations.get(context.values.get(sessionKey)!);
    if (admitted === undefined) throw new ConnectError('the connection is not known', Code.Internal);
    const identities = await admitted.attestation.verify();
    if (identities instanceof ConnectError) throw identities;
    this.#guard.prove(admitted.socket, identities.join(' '));
    return identities;
  }

  /** One response message. The peer is verified before it is made and before it is sent: making it may take seconds. */
  async #respond<T>(context: HandlerContext, make: (identities: readonly string[]) => Promise<T>): Promise<T> {
    const message = await make(await this.#admit(context));
    await this.#admit(context);
    return message;
  }

  /** What there is now, and again whenever it changes. */
  async *#stream<T>(context: HandlerContext, make: (identities: readonly string[]) => Promise<T>): AsyncIterable<T> {
    const changes = new PushQueue<true>(() => 0);
    const watcher = () => changes.push(true);
    this.#watchers.add(watcher);
    context.signal.addEventListener('abort', () => changes.close());
    try {
      yield await this.#respond(context, make);
      for await (const _ of changes) yield await this.#respond(context, make);
    } catch (error) {
      if (error instanceof ConnectError) throw error;
      boundary.unexpected(error);
      throw new ConnectError(`the control plane gives no identity: ${messageOf(error)}`, Code.Unavailable);
    } finally {
      this.#watchers.delete(watcher);
    }
  }

  #current(spiffeId: string): Promise<X509Svid> {
    let asking = this.#svids.get(spiffeId);
    if (asking === undefined) {
      asking = this.#ask(spiffeId);
      this.#svids.set(spiffeId, asking);
      // The next who asks tries again.
      asking.catch(() => this.#svids.get(spiffeId) === asking && this.#svids.delete(spiffeId));
    }
    return asking;
  }

  async #ask(spiffeId: string): Promise<X509Svid> {
    const { pair } = await this.#options.identity.issueFor(spiffeId);
    const certificates = derOf(pair.cert);
    const expiresAt = Date.parse(new X509Certificate(certificates[0]!).validTo);
    this.#renewAfter((expiresAt - Date.now()) / 2, spiffeId);
    return { chain: Buffer.concat(certificates), key: createPrivateKey(pair.key).export({ format: 'der', type: 'pkcs8' }) };
  }

  #renewAfter(delayMs: number, spiffeId: string): void {
    clearTimeout(this.#timers.get(spiffeId));
    const again = () => this.#renewAfter(retryMs, spiffeId);
    this.#timers.set(spiffeId, boundary.after(delayMs, () => this.#renew(spiffeId), again).unref());
  }

  /** Only for streams that are open: a later request receives a new one then. */
  #renew(spiffeId: string): void {
    this.#svids.delete(spiffeId);
    for (const watcher of this.#watchers) watcher();
  }

  #renewAll(): void {
    this.#svids.clear();
    for (const watcher of this.#watchers) watcher();
  }

  /** DER, by the id of their trust domain. */
  #bundles(): Record<string, Uint8Array> {
    const { secrets, trustDomain } = this.#options;
    const roots = secrets.roots(rootSecretName);
    const own = rootsOfDomain(roots, trustDomain);
    if (own === undefined) throw new ConnectError('the roots of the mesh have not come yet', Code.Unavailable);
    const bundles = new Map(roots?.domains ?? [[trustDomain, own]]);
    return Object.fromEntries([...bundles].map(([domain, pem]) => [`spiffe://${domain}`, Buffer.concat(derOf(pem))]));
  }

  /** JWK sets by trust domain, the mesh's own first. */
  async #jwtKeys(): Promise<Map<string, string>> {
    const { client, headers } = this.#options.identity.client(SvidService);
    const { jwks, federated } = await client.getKeys({}, { headers });
    return new Map([[this.#options.trustDomain, jwks], ...Object.entries(federated).filter(([, keys]) => keys.includes('"kty"'))]);
  }
}

function derOf(pem: string): Buffer[] {
  return pemCertificates(pem).map((one) => new X509Certificate(one).raw);
}
