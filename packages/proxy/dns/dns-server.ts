import dgram from 'node:dgram';
import { once } from 'node:events';
import net from 'node:net';
import { errorBoundary, type Logger, MizzenError, messageOf } from '@mizzen/common';
import type { ProxyCounters } from '../telemetry/proxy-counters.ts';
import { DnsForwarder, framed } from './dns-forwarder.ts';
import {
  classIN,
  maxQueryBytes,
  type PackedAddress,
  type Query,
  type ResponseCode,
  readQuery,
  responseCodes,
  typeA,
  typeAAAA,
  writeAddresses,
  writeEmptyAnswer,
} from './dns-message.ts';
import { NameTable } from './name-table.ts';

export interface DnsServerOptions {
  readonly port: number;
  /** Loopback addresses for captured queries; another for those who ask it by name. */
  readonly addresses: readonly string[];
  /** Who answers what the table does not know: addresses, `:port` allowed. */
  readonly upstreamServers: () => readonly string[];
  /** Domains of which nobody else knows anything: what the table has not of them does not exist. */
  readonly localDomains?: readonly string[];
  readonly counters: ProxyCounters;
  readonly logger: Logger;
  /** Sockets that were opened elsewhere, in the place of `port` and `addresses`. */
  readonly given?: { readonly tcp: readonly net.Server[]; readonly udp: readonly dgram.Socket[] };
  readonly upstreamTimeoutMs?: number;
  /** Milliseconds; for tests. */
  readonly now?: () => number;
}

/** As Istio's: short enough to follow a change, long enough to be asked rarely. */
const ttlSeconds = 30;
const maxTcpConnections = 100;
const boundary = errorBoundary('dns.query');
const maxTcpQueriesUnderWay = 64;
const tcpIdleMs = 10_000;
const maxTcpAnswerBytes = 65_535;

/**
 * The DNS proxy of a sidecar, to which the kernel redirects its application's queries (UDP and TCP port 53). Names of the mesh are
 * answered from the table that the control plane gives; everything else is asked of the machine's own servers.
 */
export class DnsServer {
  readonly #options: DnsServerOptions;
  readonly #forwarder: DnsForwarder;
  readonly #udp: dgram.Socket[];
  readonly #tcp: net.Server[];
  readonly #connections: Set<net.Socket>;
  #table: NameTable;
  #turn: number;

  constructor(options: DnsServerOptions) {
    this.#options = options;
    const { upstreamServers: servers, counters, upstreamTimeoutMs: timeoutMs, now } = options;
    this.#forwarder = new DnsForwarder({ servers, counters, ...(timeoutMs === undefined ? {} : { timeoutMs }), ...(now === undefined ? {} : { now }) });
    this.#udp = [];
    this.#tcp = [];
    this.#connections = new Set();
    this.#table = new NameTable(undefined, '', []);
    this.#turn = 0;
  }

  use(table: NameTable): void {
    this.#table = table;
  }

  async listen(): Promise<void> {
    const { port, addresses, given } = this.#options;
    if (given !== undefined) return this.#takeOver(given);
    for (const address of addresses) {
      const type = net.isIPv6(address) ? 'udp6' : 'udp4';
      // An exception drops a datagram, but not the end of the wait for the port.
      const socket: dgram.Socket = boundary.own(
        dgram.createSocket({ type, reuseAddr: false, recvBufferSize: 1024 * 1024 }),
        (event) => event === 'listening' && socket.emit('error', new Error('internal error')),
      );
      const server = boundary.own(net.createServer((connection) => this.#serveTcp(connection)));
      server.maxConnections = maxTcpConnections;
      this.#udp.push(socket);
      this.#tcp.push(server);
      socket.bind({ port, address, exclusive: true });
      server.listen({ port, host: address });
      try {
        await Promise.all([once(socket, 'listening'), once(server, 'listening')]);
      } catch (error) {
        await this.close();
        throw new MizzenError(
          'port-in-use',
          `the DNS proxy cannot listen: ${messageOf(error)}. Choose another port with capture.dnsPort.`,
          `${address}:${port}`,
        );
      }
      this.#serveOn(socket, server);
    }
  }

  #takeOver({ tcp, udp }: NonNullable<DnsServerOptions['given']>): void {
    for (const server of tcp) {
      this.#tcp.push(boundary.own(server));
      server.maxConnections = maxTcpConnections;
      server.on('connection', (connection: net.Socket) => this.#serveTcp(connection));
      this.#serveOn(undefined, server);
    }
    for (const socket of udp) {
      this.#udp.push(socket);
      this.#serveOn(socket, undefined);
    }
  }

  #serveOn(socket: dgram.Socket | undefined, server: net.Server | undefined): void {
    const report = (error: Error) => this.#options.logger.warn('the DNS proxy had an error on its socket', { error: messageOf(error) });
    server?.on('error', report);
    socket?.on('error', report);
    // An exception drops this query; its client asks again.
    socket?.on(
      'message',
      boundary.guard(
        (message, from) => this.#serveUdp(socket, message, from),
        () => void this.#options.counters.values.dns_dropped_total++,
      ),
    );
  }

  async close(): Promise<void> {
    this.#forwarder.close();
    for (const connection of this.#connections) connection.destroy();
    await Promise.all([
      ...this.#udp.splice(0).map((socket) => new Promise<void>((resolve) => socket.close(() => resolve()))),
      ...this.#tcp.splice(0).map((server) => new Promise<void>((resolve) => server.close(() => resolve()))),
    ]);
  }

  #serveUdp(socket: dgram.Socket, message: Buffer, from: dgram.RemoteInfo): void {
    const { values } = this.#options.counters;
    const send = (answer: Buffer) => {
      try {
        socket.send(answer, 0, answer.length, from.port, from.address);
      } catch {
        values.dns_dropped_total++; // the socket has been closed, or the sender's port is 0
      }
    };
    if (from.port === 0) return void values.dns_dropped_total++;
    this.#answer(message, send, false);
  }

  #serveTcp(connection: net.Socket): void {
    this.#connections.add(connection);
    let received = Buffer.alloc(0);
    let underWay = 0;
    boundary.own(connection).setTimeout(tcpIdleMs, () => connection.destroy());
    connection.on('close', () => this.#connections.delete(connection));
    connection.on('error', () => connection.destroy());
    const read = (chunk: Buffer) => {
      received = Buffer.concat([received, chunk]);
      while (received.length >= 2) {
        const length = received.readUInt16BE(0);
        if (length > maxQueryBytes || length === 0 || underWay >= maxTcpQueriesUnderWay) {
          this.#options.counters.values.dns_dropped_total++;
          return void connection.destroy();
        }
        if (received.length < 2 + length) return;
        const message = received.subarray(2, 2 + length);
        received = received.subarray(2 + length);
        underWay++;
        const isAnswered = this.#answer(
          message,
          (answer) => {
            underWay--;
            if (!connection.destroyed) connection.write(framed(answer));
          },
          true,
        );
        if (!isAnswered) return void connection.destroy();
      }
    };
    connection.on(
      'data',
      boundary.guard(read, () => void connection.destroy()),
    );
  }

  /** Returns false when there will be no answer. */
  #answer(message: Buffer, send: (answer: Buffer) => void, isTcp: boolean): boolean {
    const { values } = this.#options.counters;
    values.dns_queries_total++;
    const query = readQuery(message);
    if (query === 'drop') {
      values.dns_dropped_total++;
      return false;
    }
    if (typeof query === 'number') {
      values.dns_dropped_total++;
      send(writeEmptyAnswer(message, undefined, query));
      return true;
    }
    const limitBytes = isTcp ? maxTcpAnswerBytes : query.udpLimitBytes;
    const known = query.class === classIN ? this.#table.find(query.name) : undefined;
    if (known !== undefined && (query.type === typeA || query.type === typeAAAA)) {
      values.dns_table_answers_total++;
      const addresses = query.type === typeA ? known.ipv4 : known.ipv6;
      if (addresses.length === 0) send(writeEmptyAnswer(message, query, responseCodes.ok));
      else send(writeAddresses(message, query, this.#rotated(addresses), known.isAlias ? known.hostname : undefined, ttlSeconds, limitBytes));
      return true;
    }
    // Other records of the mesh's own names are nobody's; those of names outside are their servers' to tell.
    if (known?.isOfMesh) {
      values.dns_table_answers_total++;
      send(writeEmptyAnswer(message, query, responseCodes.ok));
      return true;
    }
    if (this.#options.localDomains?.some((domain) => query.name === domain || query.name.endsWith(`.${domain}`))) {
      send(writeEmptyAnswer(message, query, responseCodes.noSuchName));
      return true;
    }
    void this.#forward(message, query, limitBytes, isTcp)
      .then(send)
      .catch((error: unknown) => boundary.caught(error));
    return true;
  }

  /** Those who take the first address are spread over all. */
  #rotated(addresses: readonly PackedAddress[]): readonly PackedAddress[] {
    if (addresses.length === 1) return addresses;
    const first = this.#turn++ % addresses.length;
    return [...addresses.slice(first), ...addresses.slice(0, first)];
  }

  async #forward(message: Buffer, query: Query, limitBytes: number, isTcp: boolean): Promise<Buffer> {
    const { values } = this.#options.counters;
    let code: ResponseCode = responseCodes.serverFailure;
    try {
      // Kept: the buffer of a datagram is the next one's too.
      const answer = await this.#forwarder.ask(Buffer.from(message), query);
      if (answer !== undefined) {
        if (isTcp || answer.length <= limitBytes) return answer;
        const cut = writeEmptyAnswer(message, query, responseCodes.ok);
        cut[2]! |= 0x02;
        return cut;
      }
    } catch {
      code = responseCodes.serverFailure;
    }
    values.dns_failures_total++;
    return writeEmptyAnswer(message, query, code);
  }
}
