import { MizzenError } from '@mizzen/common';
import type { CommonTlsContext } from '@mizzen/envoy-api/gen/envoy/extensions/transport_sockets/tls/v3/tls_pb.js';
import { type KeyPair, readDataSource, type SecretStore } from './secret-store.ts';

/** Where one side of TLS takes its certificate and its roots from: SDS secrets by name, or what the configuration holds itself. */
export class TlsSources {
  readonly #secrets: SecretStore;
  readonly #keyPairName: string | undefined;
  readonly #rootName: string | undefined;
  readonly #staticKeyPair: KeyPair | undefined;
  readonly #staticRoots: string | undefined;

  constructor(common: CommonTlsContext | undefined, secrets: SecretStore, place: string) {
    if (!common) throw new MizzenError('invalid-tls', `${place}: common_tls_context is missing`);
    this.#secrets = secrets;
    this.#keyPairName = common.tlsCertificateSdsSecretConfigs[0]?.name;
    const inline = common.tlsCertificates[0];
    this.#staticKeyPair = inline ? { cert: readDataSource(inline.certificateChain, place), key: readDataSource(inline.privateKey, place) } : undefined;
    const { rootName, context } = validationOf(common);
    this.#rootName = rootName;
    this.#staticRoots = context?.trustedCa ? readDataSource(context.trustedCa, place) : undefined;
  }

  get hasSdsKeyPair(): boolean {
    return this.#keyPairName !== undefined;
  }

  get hasRoots(): boolean {
    return this.#rootName !== undefined || this.#staticRoots !== undefined;
  }

  keyPair(): KeyPair | undefined {
    return this.#keyPairName === undefined ? this.#staticKeyPair : this.#secrets.keyPair(this.#keyPairName);
  }

  roots(): string | undefined {
    return this.#rootName === undefined ? this.#staticRoots : this.#secrets.roots(this.#rootName);
  }

  /** The secrets that come from SDS. */
  names(): string[] {
    return [this.#keyPairName, this.#rootName].filter((name) => name !== undefined);
  }

  /** The names of the secrets that have not arrived. */
  missing(): string[] {
    const missing: string[] = [];
    if (this.#keyPairName !== undefined && !this.#secrets.keyPair(this.#keyPairName)) missing.push(this.#keyPairName);
    if (this.#rootName !== undefined && !this.#secrets.roots(this.#rootName)) missing.push(this.#rootName);
    return missing;
  }

  /** Calls back when one of these secrets has changed; returns the function that ends it. */
  onChange(listener: () => void): () => void {
    return this.#secrets.onChange((name) => {
      if (name === this.#keyPairName || name === this.#rootName) listener();
    });
  }
}

/** The name of the SDS secret with the roots, and what is said of the peer's names. */
export function validationOf(common: CommonTlsContext) {
  const { validationContextType: type } = common;
  switch (type.case) {
    case 'combinedValidationContext':
      return { rootName: type.value.validationContextSdsSecretConfig?.name, context: type.value.defaultValidationContext };
    case 'validationContextSdsSecretConfig':
      return { rootName: type.value.name, context: undefined };
    case 'validationContext':
      return { rootName: undefined, context: type.value };
    default:
      return { rootName: undefined, context: undefined };
  }
}
