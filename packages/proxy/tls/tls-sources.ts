import { createHash } from 'node:crypto';
import { readFileSync } from 'node:fs';
import type { TLSSocket } from 'node:tls';
import { toBinary } from '@bufbuild/protobuf';
import { MizzenError, messageOf } from '@mizzen/common';
import {
  type CertificateValidationContext,
  CertificateValidationContextSchema,
  type TlsCertificate,
  TlsCertificateSchema,
} from '@mizzen/envoy-api/gen/envoy/extensions/transport_sockets/tls/v3/common_pb.js';
import type { SdsSecretConfig } from '@mizzen/envoy-api/gen/envoy/extensions/transport_sockets/tls/v3/secret_pb.js';
import { type CommonTlsContext, CommonTlsContextSchema } from '@mizzen/envoy-api/gen/envoy/extensions/transport_sockets/tls/v3/tls_pb.js';
import { refuseUnsupported, supportedFields } from '../xds/supported-fields.ts';
import type { CertificateOf } from './live-peers.ts';
import { readSecretFile } from './secret-file.ts';
import type { KeyPair, RevocationLists, SecretStore, TrustedRoots } from './secret-store.ts';

const supportedOfContext = supportedFields(CommonTlsContextSchema, [
  ...['tlsParams', 'tlsCertificates', 'tlsCertificateSdsSecretConfigs', 'alpnProtocols'],
  ...['validationContext', 'validationContextSdsSecretConfig', 'combinedValidationContext'],
]);

/** Where one side of TLS takes its certificates and its roots from: SDS secrets by name, files, or what the configuration holds itself. */
export class TlsSources {
  readonly #secrets: SecretStore;
  readonly #keyPairNames: readonly string[];
  readonly #rootName: string | undefined;
  /** Names of secrets that come over the control plane's stream. */
  readonly #sdsNames: readonly string[];
  /** Revocation lists of the configuration itself, for roots that come by SDS. */
  readonly #listsName: string | undefined;
  /** The roots with these lists, for as long as neither has changed. */
  #merged: { readonly roots: TrustedRoots; readonly lists: RevocationLists; readonly both: TrustedRoots } | undefined;

  constructor(common: CommonTlsContext | undefined, secrets: SecretStore, place: string) {
    if (!common) throw new MizzenError('invalid-tls', `${place}: common_tls_context is missing`);
    refuseUnsupported(CommonTlsContextSchema, common, supportedOfContext, place);
    this.#secrets = secrets;
    const { rootConfig, context } = validationOf(common);
    const keyPairConfigs = common.tlsCertificateSdsSecretConfigs;
    this.#keyPairNames =
      keyPairConfigs.length > 0
        ? keyPairConfigs.map((config) => config.name)
        : common.tlsCertificates.map((certificate) => useCertificate(certificate, secrets, place));
    this.#rootName = rootConfig?.name ?? (context?.trustedCa || context?.customValidatorConfig ? useContext(context, secrets, place) : undefined);
    const sds: string[] = [];
    for (const config of rootConfig ? [...keyPairConfigs, rootConfig] : keyPairConfigs) if (!followSecretFile(config, secrets, place)) sds.push(config.name);
    this.#sdsNames = sds;
    this.#listsName = rootConfig && context?.crl ? useLists(context, secrets, place) : undefined;
    this.#merged = undefined;
  }

  get hasSdsKeyPair(): boolean {
    return this.#keyPairNames.some((name) => this.#sdsNames.includes(name));
  }

  get hasRoots(): boolean {
    return this.#rootName !== undefined;
  }

  keyPairs(): readonly KeyPair[] {
    return this.#keyPairNames.map((name) => this.#secrets.keyPair(name)).filter((pair) => pair !== undefined);
  }

  /** The same object until it changes. A combined context is both of its parts (common.proto `CombinedCertificateValidationContext`). */
  roots(): TrustedRoots | undefined {
    const roots = this.#rootName === undefined ? undefined : this.#secrets.roots(this.#rootName);
    const lists = this.#listsName === undefined ? undefined : this.#secrets.revocationLists(this.#listsName);
    if (roots === undefined || lists === undefined) return roots;
    if (this.#merged?.roots !== roots || this.#merged.lists !== lists) this.#merged = { roots, lists, both: { ...roots, ...lists } };
    return this.#merged.both;
  }

  /** Ends a connection whose peer has been verified when the peer's certificate is revoked. */
  followPeer(socket: TLSSocket, certificateOf: CertificateOf): void {
    if (this.#rootName !== undefined) this.#secrets.followPeer(this.#rootName, socket, certificateOf);
  }

  /** The secrets that come from SDS. */
  names(): readonly string[] {
    return this.#sdsNames;
  }

  /** The names of the secrets that have not arrived. */
  missing(): string[] {
    const missing = this.#keyPairNames.filter((name) => !this.#secrets.keyPair(name));
    if (this.#rootName !== undefined && !this.#secrets.roots(this.#rootName)) missing.push(this.#rootName);
    return missing;
  }

  /** Calls back when one of these secrets has changed; returns the function that ends it. */
  onChange(listener: () => void): () => void {
    return this.#secrets.onChange((name) => {
      if (name === this.#rootName || name === this.#listsName || this.#keyPairNames.includes(name)) listener();
    });
  }
}

/** Certificates of the configuration itself are kept under a name made of their content, the same for the same. */
function useCertificate(certificate: TlsCertificate, secrets: SecretStore, place: string): string {
  const name = `inline:${createHash('sha256').update(toBinary(TlsCertificateSchema, certificate)).digest('hex').slice(0, 16)}`;
  if (!secrets.keyPair(name)) secrets.useKeyPair(name, certificate, place);
  return name;
}

function useContext(context: CertificateValidationContext, secrets: SecretStore, place: string): string {
  const name = `inline:${createHash('sha256').update(toBinary(CertificateValidationContextSchema, context)).digest('hex').slice(0, 16)}`;
  if (!secrets.roots(name)) secrets.useRoots(name, context, place);
  return name;
}

function useLists(context: CertificateValidationContext, secrets: SecretStore, place: string): string {
  const name = `inline-crl:${createHash('sha256').update(toBinary(CertificateValidationContextSchema, context)).digest('hex').slice(0, 16)}`;
  if (!secrets.revocationLists(name)) secrets.useRevocationLists(name, context, place);
  return name;
}

/** SDS from a file (config_source.proto `PathConfigSource`). Returns false when the secret comes from elsewhere. */
function followSecretFile(config: SdsSecretConfig, secrets: SecretStore, place: string): boolean {
  const source = config.sdsConfig?.configSourceSpecifier;
  const path = source?.case === 'pathConfigSource' ? source.value.path : source?.case === 'path' ? source.value : undefined;
  if (path === undefined) return false;
  const directory = source?.case === 'pathConfigSource' ? source.value.watchedDirectory?.path : undefined;
  const read = () => {
    let text: string;
    try {
      text = readFileSync(path, 'utf8');
    } catch (error) {
      throw new MizzenError('unreadable-file', `${place}: ${messageOf(error)}`, path);
    }
    const found = readSecretFile(text, path).filter((secret) => secret.name === config.name);
    if (found.length === 0) throw new MizzenError('invalid-secret', `${place}: the file holds no secret ${config.name}`, path);
    for (const secret of found) secrets.accept(secret);
  };
  read();
  secrets.followFile(path, directory, read);
  return true;
}

/** Where the roots come from by SDS, and what is said of the peer's certificate. */
export function validationOf(common: CommonTlsContext): {
  readonly rootConfig: SdsSecretConfig | undefined;
  readonly context: CertificateValidationContext | undefined;
} {
  const { validationContextType: type } = common;
  switch (type.case) {
    case 'combinedValidationContext':
      return { rootConfig: type.value.validationContextSdsSecretConfig, context: type.value.defaultValidationContext };
    case 'validationContextSdsSecretConfig':
      return { rootConfig: type.value, context: undefined };
    case 'validationContext':
      return { rootConfig: undefined, context: type.value };
    case undefined:
      return { rootConfig: undefined, context: undefined };
    default:
      throw new MizzenError('unsupported-tls', `a validation context of type ${type.case} is not supported`);
  }
}
