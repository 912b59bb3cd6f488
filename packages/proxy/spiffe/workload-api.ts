import { createPrivateKey, X509Certificate } from 'node:crypto';
import { once } from 'node:events';
import { chmodSync, mkdirSync, renameSync, rmSync, statSync } from 'node:fs';
import { createServer, type Http2Server, type ServerHttp2Session } from 'node:http2';
import { dirname } from 'node:path';
import { create, type MessageInitShape } from '@bufbuild/protobuf';
import { Code, ConnectError, type HandlerContext, type ServiceImpl } from '@connectrpc/connect';
import { type Logger, MizzenError, messageOf, PushQueue } from '@mizzen/common';
import { grpcHandler, sessionsOf } from '@mizzen/common/grpc-server';
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

export interface WorkloadApiOptions {
  readonly socketPath: string;
  /** `spiffe://cluster.local/ns/default/sa/reviews`. */
  readonly spiffeId: string;
  readonly trustDomain: string;
  readonly identity: IdentityAgent;
  readonly secrets: SecretStore;
  readonly logger: Logger;
}

interface X509Svid {
  readonly chain: Uint8Array;
  readonly key: Uint8Array;
  readonly expiresAt: number;
}

/**
 * The SPIFFE Workload API for the one workload of this sidecar: any SPIFFE library takes X.509-SVIDs, JWT-SVIDs and trust bundles from it. Who may open the socket
 * is the workload; the folder around it is for its user alone.
 */
export class WorkloadApi {
  readonly #options: WorkloadApiOptions;
  readonly #server: Http2Server;
  readonly #sessions: ReadonlySet<ServerHttp2Session>;
  /** Streams to tell when something changes. */
  readonly #watchers: Set<() => void>;
  #svid: Promise<X509Svid> | undefined;
  #timer: NodeJS.Timeout | undefined;
  #stopListening: (() => void) | undefined;
  /** Of the socket. */
  #inode: number | undefined;

  constructor(options: WorkloadApiOptions) {
    this.#options = options;
    this.#watchers = new Set();
    this.#svid = undefined;
    this.#timer = undefined;
    this.#stopListening = undefined;
    this.#inode = undefined;
    this.#server = createServer(grpcHandler({ routes: (router) => void router.service(SpiffeWorkloadAPI, this.#service()) }));
    this.#sessions = sessionsOf(this.#server);
  }

  async listen(): Promise<void> {
    const { socketPath, secrets } = this.#options;
    const early = `${socketPath}.${process.pid}`;
    if (Buffer.byteLength(early) > maxSocketPathLength)
      throw new MizzenError('path-too-long', `a Unix socket's path may have ${maxSocketPathLength} bytes: choose a shorter home for the mesh`, socketPath);
    mkdirSync(dirname(socketPath), { recursive: true, mode: 0o700 });
    // Under another name first: a server that closes removes the name it began with, and this may be the successor of one that still runs.
    rmSync(early, { force: true });
    this.#server.listen(early);
    await once(this.#server, 'listening');
    chmodSync(early, 0o600);
    this.#inode = statSync(early).ino;
    renameSync(early, socketPath);
    // Another root: certificates of the one before will not be trusted much longer.
    this.#stopListening = secrets.onChange((name) => name === rootSecretName && this.#renew());
  }

  async close(): Promise<void> {
    clearTimeout(this.#timer);
    this.#stopListening?.();
    if (!this.#server.listening) return;
    const closed = once(this.#server, 'close');
    this.#server.close();
    for (const session of this.#sessions) session.destroy();
    await closed;
    if (statSync(this.#options.socketPath, { throwIfNoEntry: false })?.ino === this.#inode) rmSync(this.#options.socketPath, { force: true });
  }

  #service(): ServiceImpl<typeof SpiffeWorkloadAPI> {
    const { spiffeId, trustDomain, identity } = this.#options;
    const domainId = `spiffe://${trustDomain}`;
    return {
      fetchX509SVID: (_request, context) =>
        this.#stream(context, async (): Promise<MessageInitShape<typeof X509SVIDResponseSchema>> => {
          const { chain, key } = await this.#current();
          const { [domainId]: bundle, ...federatedBundles } = this.#bundles();
          return { svids: [{ spiffeId, x509Svid: chain, x509SvidKey: key, bundle: bundle! }], federatedBundles };
        }),
      fetchX509Bundles: (_request, context) =>
        this.#stream(context, async (): Promise<MessageInitShape<typeof X509BundlesResponseSchema>> => ({ bundles: this.#bundles() })),
      fetchJWTSVID: async ({ audience, spiffeId: wanted }, context) => {
        demandHeader(context);
        if (audience.length === 0) throw new ConnectError('for whom is the token? An audience is needed', Code.InvalidArgument);
        if (wanted !== '' && wanted !== spiffeId) throw new ConnectError(`this workload is ${spiffeId}, not ${wanted}`, Code.PermissionDenied);
        const { client } = identity.client(SvidService);
        const { token } = await client.createToken({ audiences: audience });
        return create(JWTSVIDResponseSchema, { svids: [{ spiffeId, svid: token }] });
      },
      fetchJWTBundles: (_request, context) =>
        this.#stream(
          context,
          async (): Promise<MessageInitShape<typeof JWTBundlesResponseSchema>> => ({
            bundles: Object.fromEntries([...(await this.#jwtKeys())].map(([domain, keys]) => [`spiffe://${domain}`, Buffer.from(keys)])),
          }),
        ),
      validateJWTSVID: async ({ audience, svid }, context) => {
        demandHeader(context);
        if (audience === '' || svid === '') throw new ConnectError('audience and svid are needed', Code.InvalidArgument);
        // The keys of one trust domain say nothing about identities of another.
        const results = [...(await this.#jwtKeys())].map(([domain, keys]) => {
          const verifier = new TokenVerifier({
            ...{ issuer: '', audiences: [audience], fitsSubject: (subject: string) => subject.startsWith(`spiffe://${domain}/`), requiresExpiration: true },
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
      },
    };
  }

  /** What there is now, and again whenever it changes. */
  async *#stream<T>(context: HandlerContext, make: () => Promise<T>): AsyncIterable<T> {
    demandHeader(context);
    const changes = new PushQueue<true>();
    const watcher = () => changes.push(true);
    this.#watchers.add(watcher);
    context.signal.addEventListener('abort', () => changes.close());
    try {
      yield await make();
      for await (const _ of changes) yield await make();
    } catch (error) {
      if (error instanceof ConnectError) throw error;
      throw new ConnectError(`the control plane gives no identity: ${messageOf(error)}`, Code.Unavailable);
    } finally {
      this.#watchers.delete(watcher);
    }
  }

  #current(): Promise<X509Svid> {
    if (this.#svid === undefined) {
      const asking = this.#ask();
      this.#svid = asking;
      // The next who asks tries again.
      asking.catch(() => {
        if (this.#svid === asking) this.#svid = undefined;
      });
    }
    return this.#svid;
  }

  async #ask(): Promise<X509Svid> {
    const { pair } = await this.#options.identity.issueForWorkload();
    const certificates = derOf(pair.cert);
    const expiresAt = Date.parse(new X509Certificate(certificates[0]!).validTo);
    clearTimeout(this.#timer);
    this.#timer = setTimeout(() => this.#renew(), Math.min(2 ** 31 - 1, (expiresAt - Date.now()) / 2)).unref();
    return { chain: Buffer.concat(certificates), key: createPrivateKey(pair.key).export({ format: 'der', type: 'pkcs8' }), expiresAt };
  }

  /** Only where somebody listens: whoever asks later gets a new one then. */
  #renew(): void {
    this.#svid = undefined;
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

/** SPIFFE Workload Endpoint, section 3.1: whoever was tricked into a request cannot set it. */
function demandHeader(context: HandlerContext): void {
  if (context.requestHeader.get('workload.spiffe.io') !== 'true')
    throw new ConnectError('the metadata workload.spiffe.io: true is missing (SPIFFE Workload Endpoint, section 3.1)', Code.InvalidArgument);
}

function derOf(pem: string): Buffer[] {
  return (pem.match(/-----BEGIN CERTIFICATE-----[\s\S]+?-----END CERTIFICATE-----/g) ?? []).map((one) => new X509Certificate(one).raw);
}
