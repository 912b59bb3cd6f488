import type { Http2SecureServer, Http2Server, Http2ServerRequest, Http2ServerResponse, ServerHttp2Session } from 'node:http2';
import { constants } from 'node:http2';
import { type ConnectNodeAdapterOptions, connectNodeAdapter } from '@connectrpc/connect-node';

/**
 * A listener of an HTTP/2 server for gRPC services. The library beneath makes a URL of what the client calls itself asked (`:authority`), and throws where that
 * is none: a socket's path, as gRPC's clients of Unix sockets send it, or anything else that a stranger thinks of. Nobody here reads it.
 */
export function grpcHandler(options: ConnectNodeAdapterOptions): (request: Http2ServerRequest, response: Http2ServerResponse) => void {
  const handler = connectNodeAdapter(options);
  return (request, response) => {
    request.headers[':authority'] = 'localhost';
    try {
      handler(request, response);
    } catch {
      // A request is never worth the process.
      response.stream?.close(constants.NGHTTP2_INTERNAL_ERROR);
    }
  };
}

/** The sessions of a server while they live: closing the server waits for them. */
export function sessionsOf(server: Http2Server | Http2SecureServer): ReadonlySet<ServerHttp2Session> {
  const sessions = new Set<ServerHttp2Session>();
  server.on('session', (session) => {
    sessions.add(session);
    session.on('close', () => sessions.delete(session));
    session.on('error', () => session.destroy());
  });
  return sessions;
}
