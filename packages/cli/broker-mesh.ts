import { X509Certificate } from 'node:crypto';
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import type tls from 'node:tls';
import { errorBoundary, type Logger, messageOf, tlsDefaults, usableRoots } from '@mizzen/common';
import { openLine, readTextFile, sealLine, writeDurably } from '@mizzen/common/durable-file';
import { PeerValidity } from '@mizzen/common/peer-validity';
import { type BrokerPolicy, unpackAny } from '@mizzen/envoy-api';
import { SecretSchema } from '@mizzen/envoy-api/gen/envoy/extensions/transport_sockets/tls/v3/secret_pb.js';
import { BrokerPolicySchema } from '@mizzen/envoy-api/gen/mizzen/message/v1/messaging_pb.js';
import type { BrokerAuthorization } from '@mizzen/message/broker/broker-server';
import { BrokerAccess } from '@mizzen/message/policy/broker-access';
import { checkProxyConfig, type ProxyConfig } from '@mizzen/proxy';
import { ProxyCounters } from '@mizzen/proxy/telemetry/proxy-counters';
import { leafCrls } from '@mizzen/proxy/tls/leaf-crl';
import { peerIdentityOf } from '@mizzen/proxy/tls/peer-identity';
import { rootSecretName, workloadSecretName } from '@mizzen/proxy/tls/secret-names';
import { rootsOfDomain, SecretStore } from '@mizzen/proxy/tls/secret-store';
import { AdsClient } from '@mizzen/proxy/xds/ads-client';
import { IdentityAgent } from '@mizzen/proxy/xds/identity-agent';
import { nodeOf } from '@mizzen/proxy/xds/node';

const boundary = errorBoundary('broker.mesh');

/** Before a step that has thrown here is tried again. */
const failedPauseMs = 1_000;
/** What a restarted broker serves with while the control plane is away: in the broker's directory, mode 0600. */
const stateFile = 'mesh.state';

interface MeshState {
  readonly policy: BrokerPolicy;
  readonly roots: string;
  readonly crl: string | undefined;
  readonly cert: string;
  readonly key: string;
}

/** The broker's own identity in the mesh, kept fresh. */
export interface BrokerIdentity {
  /** Its SPIFFE ID. */
  readonly uri: string;
  tls(): tls.TlsOptions;
  close(): void;
}

/** `file`: what the broker is and where its control plane is, in the form of a proxy's configuration. Resolves when there is a certificate. */
export async function brokerIdentity(file: string, logger: Logger): Promise<BrokerIdentity> {
  const config = readConfig(file);
  const secrets = new SecretStore(logger);
  const agent = new IdentityAgent(config, secrets, new ProxyCounters(), logger);
  await agent.start();
  return {
    uri: ownUri(config),
    tls: () => tlsOf(config, secrets),
    close: () => {
      agent.close();
      secrets.close();
    },
  };
}

/**
 * A broker's part in its mesh: its identity, the roots that it trusts, what is revoked, and the policies that it enforces. All of it comes from the control
 * plane and is kept on disk, so that a broker that starts without the control plane enforces what it enforced before.
 */
export class BrokerMesh implements BrokerAuthorization {
  readonly access: BrokerAccess;
  readonly validity: PeerValidity;
  readonly #config: ProxyConfig;
  readonly #folder: string;
  readonly #logger: Logger;
  readonly #secrets: SecretStore;
  readonly #identity: IdentityAgent;
  readonly #control: AdsClient;
  #policy: BrokerPolicy | undefined;
  #onTlsChanged: () => void;
  #becomesReady: () => void;
  /** Resolves when the broker has a certificate and knows what to enforce: from the control plane, or from disk. */
  readonly ready: Promise<void>;

  constructor(file: string, folder: string, logger: Logger) {
    this.#config = readConfig(file);
    this.#folder = folder;
    this.#logger = logger;
    this.#secrets = new SecretStore(logger);
    const counters = new ProxyCounters();
    this.#identity = new IdentityAgent(this.#config, this.#secrets, counters, logger);
    this.#policy = undefined;
    this.#onTlsChanged = () => {};
    this.#becomesReady = () => {};
    this.ready = new Promise((resolve) => {
      this.#becomesReady = resolve;
    });
    this.access = new BrokerAccess();
    this.validity = new PeerValidity({
      isRevoked: (serial) => this.#isRevoked(serial),
      isTrustedDomain: (domain) => domain === this.#config.trustDomain,
    });
    this.#control = new AdsClient({
      control: this.#config.control,
      node: nodeOf(this.#config, undefined),
      state: {
        wanted: (type) => (type === 'secret' ? [rootSecretName] : []),
        accept: (type, resources) => {
          if (type === 'secret') for (const resource of resources) this.#secrets.accept(unpackAny(SecretSchema, resource)!);
          // An empty response is one of a control plane that does not take this process for the broker: nothing changes.
          if (type === 'broker-policy' && resources.length > 0) this.#accept(unpackAny(BrokerPolicySchema, resources[0])?.policy ?? '');
        },
      },
      wholeTypes: ['broker-policy'],
      ...{ identity: this.#identity, counters, logger },
    });
    this.#identity.onRenewed(() => this.#control.reconnect());
    this.#secrets.onChange((name) => {
      if (name === rootSecretName) this.validity.endInvalid();
      this.#keep();
      this.#onTlsChanged();
    });
  }

  /** Resolves when the broker may serve. */
  async start(): Promise<void> {
    this.#restore();
    this.#startIdentity();
    this.#control.start();
    await this.ready;
  }

  /** Without a certificate the broker never serves: after an exception it is requested again. */
  #startIdentity(): void {
    boundary.start(
      () => this.#identity.start().then(() => this.#checkReady()),
      () => boundary.after(failedPauseMs, () => this.#startIdentity()),
    );
  }

  tls(): tls.TlsOptions {
    return tlsOf(this.#config, this.#secrets);
  }

  onTlsChanged(listener: () => void): void {
    this.#onTlsChanged = listener;
  }

  identityOf(socket: tls.TLSSocket): string | undefined {
    const identity = peerIdentityOf(socket);
    return 'uri' in identity ? identity.uri : undefined;
  }

  /** The broker's own identity, which the mesh's operator uses on its machine. */
  isOperator(identity: string): boolean {
    return identity === ownUri(this.#config);
  }

  async close(): Promise<void> {
    this.#identity.close();
    await this.#control.close();
    this.#secrets.close();
  }

  #isRevoked(serial: string): boolean {
    const lists = this.#secrets.roots(rootSecretName)?.leafCrl;
    return lists !== undefined && [...leafCrls(lists).values()].some((serials) => serials.has(serial));
  }

  #accept(text: string): void {
    const policy = JSON.parse(text) as BrokerPolicy;
    this.#policy = policy;
    this.access.use(policy);
    this.#keep();
    this.#checkReady();
  }

  #checkReady(): void {
    if (this.#policy !== undefined && this.#secrets.keyPair(workloadSecretName) !== undefined) this.#becomesReady();
  }

  #keep(): void {
    const pair = this.#secrets.keyPair(workloadSecretName);
    if (this.#policy === undefined || pair === undefined) return;
    const roots = this.#secrets.roots(rootSecretName);
    const state: MeshState = {
      ...{ policy: this.#policy, cert: pair.cert, key: pair.key },
      ...{ roots: rootsOfDomain(roots, this.#config.trustDomain) ?? '', crl: roots?.leafCrl },
    };
    try {
      writeDurably(join(this.#folder, stateFile), `${sealLine(JSON.stringify(state))}\n`);
    } catch (error) {
      this.#logger.error(`what the broker enforces cannot be kept for its next start: ${messageOf(error)}`);
    }
  }

  /** What was kept at the last run. What is damaged or has expired is left out: the control plane is waited for. */
  #restore(): void {
    const path = join(this.#folder, stateFile);
    try {
      const text = readTextFile(path);
      if (text === undefined) return;
      const line = openLine(text.trimEnd());
      if (line === undefined) throw new Error('it is damaged');
      const { policy, roots, crl, cert, key } = JSON.parse(line) as MeshState;
      if (roots !== '') this.#secrets.setRoots(rootSecretName, { pem: roots, ...(crl === undefined ? {} : { leafCrl: crl }) });
      this.#policy = policy;
      this.access.use(policy);
      const problem = this.validity.problemOf(new X509Certificate(cert));
      if (problem === undefined) this.#secrets.setKeyPair(workloadSecretName, { cert, key });
      else this.#logger.warn(`the kept certificate of the broker is not used: ${problem}`);
      this.#logger.info('the policies of the last run are enforced until the control plane is connected', { components: policy.components.length });
      this.#checkReady();
    } catch (error) {
      this.#logger.error(`what the broker enforced at its last run cannot be read, so it waits for the control plane: ${messageOf(error)} (file=${path})`);
    }
  }
}

const ownUri = ({ trustDomain, namespace, serviceAccount }: ProxyConfig) => `spiffe://${trustDomain}/ns/${namespace}/sa/${serviceAccount}`;

function readConfig(file: string): ProxyConfig {
  return checkProxyConfig(JSON.parse(readFileSync(file, 'utf8')), file);
}

function tlsOf(config: ProxyConfig, secrets: SecretStore): tls.TlsOptions {
  const pair = secrets.keyPair(workloadSecretName);
  if (pair === undefined) throw new Error('the broker has no certificate yet');
  const roots = [readFileSync(config.rootCertificateFile, 'utf8'), rootsOfDomain(secrets.roots(rootSecretName), config.trustDomain) ?? ''];
  return { cert: pair.cert, key: pair.key, ca: usableRoots(roots.join('\n')).roots, ...tlsDefaults };
}
