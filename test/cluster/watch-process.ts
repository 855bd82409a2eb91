/**
 * Watches an agent from a process of its own, so that what it sees is not slowed down by a test that attacks: asks for the status again and
 * again, until standard input ends, and then prints the slowest answer and the most memory. Arguments: socket, pid.
 */
import { readFileSync } from 'node:fs'
import { setTimeout as delay } from 'node:timers/promises'
import { Client } from '../../agent/api/client.ts'

const EVERY_MS = 50

const [, , socket = '', pid = ''] = process.argv
const client = new Client(async () => [socket])
let [slowestMs, mostBytes, isOver] = [0, 0, false]
process.stdin.resume().once('end', () => {
  isOver = true
})
process.stdout.write('watching\n')
while (!isOver) {
  const startMs = performance.now()
  await client.get('status')
  slowestMs = Math.max(slowestMs, performance.now() - startMs)
  const [, kib] = /^VmRSS:\s+(\d+) kB$/m.exec(readFileSync(`/proc/${pid}/status`, 'utf8')) ?? []
  mostBytes = Math.max(mostBytes, Number(kib) * 1024)
  await delay(EVERY_MS)
}
process.stdout.write(`${JSON.stringify({ slowestMs, mostBytes })}\n`)
