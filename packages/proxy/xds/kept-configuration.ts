import { createCipheriv, createDecipheriv, createHash, randomBytes, X509Certificate } from 'node:crypto';
import { chmodSync, closeSync, constants, existsSync, fstatSync, lstatSync, mkdirSync, openSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { create, fromBinary, type MessageInitShape, toBinary, toJsonString } from '@bufbuild/protobuf';
import { messageOf } from '@mizzen/common';
import { writeDurablyAsync } from '@mizzen/common/durable-file';
import { type Node, NodeSchema } from '@mizzen/envoy-api/gen/envoy/config/core/v3/base_pb.js';
import { type KeptConfiguration, KeptConfigurationSchema } from '@mizzen/envoy-api/gen/mizzen/proxy/v1/kept_configuration_pb.js';

/**
 * The last configuration that a proxy has accepted, in a folder of its own: `configuration`, a line of JSON (whose it is, when it was written) and the
 * message `mizzen.proxy.v1.KeptConfiguration`, sealed by AES-256-GCM with the key in the file `key`. The seal is the checksum, and binds content to header.
 * Both files have mode 0600. A copy of one file reveals nothing; the proxy's user can read both, as it can read the process.
 */
export interface ProxyBinding {
  readonly node: Node;
  /** SPIFFE id. */
  readonly identity: string;
  readonly version: string;
}

export type KeptRead =
  | { readonly kind: 'none' }
  | { readonly kind: 'ignored'; readonly reason: string }
  | { readonly kind: 'usable'; readonly savedAt: Date; readonly configuration: KeptConfiguration };

interface Header {
  readonly format: number;
  readonly version: string;
  readonly identity: string;
  readonly node: string;
  readonly nodeDigest: string;
  readonly savedAt: string;
}

const format = 1;
const magic = 'mizzen-configuration ';
const nonceBytes = 12;
const tagBytes = 16;
const keyBytes = 32;
/** A larger file is taken for damaged. */
const maxFileBytes = 256 * 1024 * 1024;
/** An older file is ignored, even where the certificate in it is still valid. */
export const defaultMaxAgeMs = 7 * 24 * 3_600_000;

export class KeptConfigurationFile {
  readonly folder: string;
  readonly #binding: ProxyBinding;
  readonly #nodeDigest: string;
  readonly #maxAgeMs: number;
  readonly #now: () => number;

  constructor(folder: string, binding: ProxyBinding, maxAgeMs = defaultMaxAgeMs, now: () => number = Date.now) {
    this.folder = folder;
    this.#binding = binding;
    this.#nodeDigest = createHash('sha256').update(toJsonString(NodeSchema, binding.node)).digest('hex');
    this.#maxAgeMs = maxAgeMs;
    this.#now = now;
  }

  get #path(): string {
    return join(this.folder, 'configuration');
  }

  get exists(): boolean {
    return existsSync(this.#path);
  }

  /** What is kept, or why it is not used. Never throws. */
  read(): KeptRead {
    let bytes: Buffer;
    try {
      bytes = readOwnFile(this.#path);
    } catch (error) {
      return isMissing(error) ? { kind: 'none' } : { kind: 'ignored', reason: messageOf(error) };
    }
    try {
      return this.#open(bytes);
    } catch (error) {
      return { kind: 'ignored', reason: `it is damaged (${messageOf(error)})` };
    }
  }

  #open(bytes: Buffer): KeptRead {
    const end = bytes.indexOf(10);
    const head = bytes.subarray(0, end + 1);
    if (end < 0 || !head.toString('latin1').startsWith(magic)) throw new Error('it does not begin with a header');
    const header = JSON.parse(head.toString('utf8').slice(magic.length)) as Header;
    const ignored = (reason: string) => ({ kind: 'ignored', reason }) as const;
    const { identity, node, version } = this.#binding;
    if (header.format !== format || header.version !== version)
      return ignored(`it was written by version ${header.version} (format ${header.format}), and this is version ${version} (format ${format})`);
    if (header.identity !== identity) return ignored(`it belongs to another identity, ${header.identity}`);
    if (header.node !== node.id || header.nodeDigest !== this.#nodeDigest)
      return ignored(`it belongs to another node, ${header.node}, or to this one with other ports or labels`);
    const now = this.#now();
    if (!(Date.parse(header.savedAt) > now - this.#maxAgeMs))
      return ignored(`it is too old: it was written at ${header.savedAt}, more than ${this.#maxAgeMs / 3_600_000} h ago by the clock of this machine`);
    const key = readOwnFile(join(this.folder, 'key'));
    const at = end + 1 + nonceBytes;
    const decipher = createDecipheriv('aes-256-gcm', key, bytes.subarray(end + 1, at), { authTagLength: tagBytes });
    decipher.setAAD(head).setAuthTag(bytes.subarray(at, at + tagBytes));
    const content = Buffer.concat([decipher.update(bytes.subarray(at + tagBytes)), decipher.final()]);
    const configuration = fromBinary(KeptConfigurationSchema, content);
    const certificate = new X509Certificate(configuration.certificate);
    if (!certificate.subjectAltName?.split(', ').includes(`URI:${identity}`)) return ignored('the certificate in it belongs to another identity');
    if (Date.parse(certificate.validTo) <= now)
      return ignored(
        `it is too old: the certificate in it expired at ${certificate.validTo}, and the clock of this machine says ${new Date(now).toISOString()}`,
      );
    return { kind: 'usable', savedAt: new Date(header.savedAt), configuration };
  }

  /** Replaces what is kept, whole or not at all. Throws what the file system says. */
  async write(content: MessageInitShape<typeof KeptConfigurationSchema>): Promise<void> {
    this.#ownFolder();
    const key = await this.#key();
    const { identity, node, version } = this.#binding;
    const header: Header = { format, version, identity, node: node.id, nodeDigest: this.#nodeDigest, savedAt: new Date(this.#now()).toISOString() };
    const head = Buffer.from(`${magic}${JSON.stringify(header)}\n`);
    const nonce = randomBytes(nonceBytes);
    const cipher = createCipheriv('aes-256-gcm', key, nonce, { authTagLength: tagBytes }).setAAD(head);
    const sealed = cipher.update(toBinary(KeptConfigurationSchema, create(KeptConfigurationSchema, content)));
    const rest = cipher.final();
    await writeDurablyAsync(this.#path, Buffer.concat([head, nonce, cipher.getAuthTag(), sealed, rest]));
  }

  async #key(): Promise<Buffer> {
    const path = join(this.folder, 'key');
    try {
      const key = readOwnFile(path);
      if (key.length === keyBytes) return key;
    } catch (error) {
      if (!isMissing(error)) throw error;
    }
    const key = randomBytes(keyBytes);
    await writeDurablyAsync(path, key);
    return key;
  }

  #ownFolder(): void {
    mkdirSync(this.folder, { recursive: true, mode: 0o700 });
    const { uid, mode } = lstatSync(this.folder);
    if (!isOwn(uid)) throw new Error(`the folder ${this.folder} belongs to another user`);
    if ((mode & 0o077) !== 0) chmodSync(this.folder, 0o700);
  }
}

/** A regular file of this user that others cannot read. */
function readOwnFile(path: string): Buffer {
  const file = openSync(path, constants.O_RDONLY | constants.O_NOFOLLOW);
  try {
    const { uid, mode, size } = fstatSync(file);
    if (!isOwn(uid)) throw new Error(`${path} belongs to another user`);
    if ((mode & 0o077) !== 0) throw new Error(`${path} has mode ${(mode & 0o777).toString(8)}: others may have changed or read it`);
    if (size > maxFileBytes) throw new Error(`${path} is larger than ${maxFileBytes} bytes`);
    return readFileSync(file);
  } finally {
    closeSync(file);
  }
}

const isOwn = (uid: number) => process.geteuid === undefined || uid === process.geteuid();
const isMissing = (error: unknown) => error instanceof Error && 'code' in error && error.code === 'ENOENT';
