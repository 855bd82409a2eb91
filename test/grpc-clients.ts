/**
 * Two clients of xDS that are not ours, gRPC for Node and for C (Debian's python3-grpcio), which ask `xds:///web.home.internal` who they have reached,
 * and the applications that answer.
 */
import { type ChildProcess, spawn } from 'node:child_process'
import { once } from 'node:events'
import { existsSync } from 'node:fs'
import { createInterface } from 'node:readline'
import * as grpc from '@grpc/grpc-js'
import { register } from '@grpc/grpc-js-xds'
import { run } from './agents.ts'

const PYTHON = '/usr/bin/python3'
const METHOD = '/test.Who/Ask'
const ASK_SECONDS_MAX = 5
const serialize = (text: string) => Buffer.from(text)
const deserialize = (raw: Buffer) => raw.toString()

/** The name of the application that answered; `failed` and a status when none did. */
export type Asks = () => Promise<string>

/** Asks once for each line that it reads. */
const CLIENT = `
import sys, grpc
channel = grpc.insecure_channel(sys.argv[1])
ask = channel.unary_unary('${METHOD}', request_serializer=lambda t: t.encode(), response_deserializer=lambda b: b.decode())
for line in sys.stdin:
    try: print(ask('who', timeout=${ASK_SECONDS_MAX}), flush=True)
    except grpc.RpcError as error: print('failed', error.code().name, flush=True)
`

export async function hasGrpcio(): Promise<boolean> {
  const isHere = existsSync(PYTHON) && (await run(PYTHON, ['-c', 'import grpc'])).code === 0
  if (!isHere) console.warn('SKIPPED: the client in Python needs Debian’s python3-grpcio')
  return isHere
}

/** Where clients that are started from now on ask for services: `127.0.0.1:7478`. Node's remembers the first that it was told of. */
export function useXds(address: string): void {
  process.env.GRPC_XDS_BOOTSTRAP_CONFIG = JSON.stringify({
    xds_servers: [{ server_uri: address, channel_creds: [{ type: 'insecure' }], server_features: ['xds_v3'] }],
    node: { id: 'test', cluster: 'test', locality: { zone: 'attic' } },
  })
}

/** An application that says its name, at a port of loopback. */
export async function whoServer(name: string, stack: AsyncDisposableStack): Promise<number> {
  const server = new grpc.Server()
  const codecs = {
    requestSerialize: serialize,
    requestDeserialize: deserialize,
    responseSerialize: serialize,
    responseDeserialize: deserialize,
  }
  const answer = (_call: unknown, done: grpc.sendUnaryData<string>) => done(null, name)
  server.addService({ Ask: { path: METHOD, requestStream: false, responseStream: false, ...codecs } }, { Ask: answer })
  const port = await new Promise<number>((resolve, reject) => {
    server.bindAsync('127.0.0.1:0', grpc.ServerCredentials.createInsecure(), (error, bound) =>
      error === null ? resolve(bound) : reject(error),
    )
  })
  stack.defer(() => server.forceShutdown())
  return port
}

export function nodeClient(name: string, stack: AsyncDisposableStack): Asks {
  register()
  const client = new grpc.Client(`xds:///${name}`, grpc.credentials.createInsecure())
  stack.defer(() => client.close())
  return () =>
    new Promise((resolve) => {
      const deadline = Date.now() + ASK_SECONDS_MAX * 1_000
      client.makeUnaryRequest(METHOD, serialize, deserialize, 'who', { deadline }, (error, who) =>
        resolve(error === null ? (who ?? '') : `failed ${grpc.status[error.code]}`),
      )
    })
}

export function pythonClient(name: string, stack: AsyncDisposableStack): Asks {
  const child: ChildProcess = spawn(PYTHON, ['-c', CLIENT, `xds:///${name}`], { stdio: ['pipe', 'pipe', 'inherit'] })
  stack.defer(() => void child.kill('SIGKILL'))
  const lines = createInterface({ input: child.stdout as NonNullable<typeof child.stdout> })
  return async () => {
    const line = once(lines, 'line') as Promise<[string]>
    child.stdin?.write('\n')
    return (await line)[0]
  }
}
