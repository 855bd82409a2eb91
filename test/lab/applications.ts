/**
 * What a machine behind a router offers, each on its loopback, until it is killed: a web server (HTTP/1 and WebSocket, 8080; HTTP/2, 8081). Run in
 * a network namespace.
 */
import { once } from 'node:events'
import { createServer } from 'node:http2'
import { webServer } from '../web-server.ts'

const web = webServer().listen(8_080, '127.0.0.1')
const http2 = createServer((request, response) => response.end(`h2 ${request.url}`)).listen(8_081, '127.0.0.1')
for (const server of [web, http2]) if (!server.listening) await once(server, 'listening')
