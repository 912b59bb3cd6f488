/**
 * Node's HTTP module, for programs that are started often. An `import` of any of its names reads all of them, and `WebSocket` among them is a getter that loads a whole HTTP client (undici):
 * a tenth of a proxy's start.
 */
export const http = process.getBuiltinModule('node:http');
