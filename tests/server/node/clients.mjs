// Drives a server by clients of Node.js: node clients.mjs URL. Fails by an assertion, or prints "done".

import assert from "node:assert/strict";
import { createAnthropic } from "@ai-sdk/anthropic";
import { createOpenAI } from "@ai-sdk/openai";
import { generateText, Output, stepCountIs, streamText, tool } from "ai";
import OpenAI from "openai";
import { z } from "zod";

const url = process.argv[2];
const Person = z.strictObject({
  name: z.enum(["Ada", "Bo"]),
  home: z.strictObject({ city: z.enum(["Oslo", "Rome"]) }),
});

async function openai() {
  const client = new OpenAI({ baseURL: `${url}/v1`, apiKey: "none", maxRetries: 0 });
  const body = { model: "small", input: "hi", max_output_tokens: 4, seed: 1 };
  const whole = await client.responses.create(body);
  let text = "";
  for await (const event of await client.responses.create({ ...body, stream: true })) {
    if (event.type === "response.output_text.delta") text += event.delta;
  }
  assert.equal(text, whole.output_text);
  const messages = [{ role: "user", content: "hi" }];
  const chat = { model: "small", messages, max_tokens: 4, seed: 1 };
  const reply = (await client.chat.completions.create(chat)).choices[0].message.content;
  const stream = client.chat.completions.stream(chat);
  assert.equal((await stream.finalChatCompletion()).choices[0].message.content, reply);
}

async function sdk(model, options) {
  // an agent whose first step calls a tool, and whose second has its result
  const met = [];
  const greet = tool({
    description: "Greet somebody.",
    inputSchema: Person,
    execute: (person) => {
      met.push(person);
      return `Hello ${person.name}`;
    },
  });
  const agent = {
    model,
    prompt: "hi",
    tools: { greet },
    maxOutputTokens: 200,
    stopWhen: stepCountIs(2),
    prepareStep: ({ stepNumber }) => (stepNumber === 0 ? { toolChoice: "required" } : { toolChoice: "none" }),
    ...options,
  };
  const run = await generateText(agent);
  assert.equal(run.steps[0].toolCalls[0].toolName, "greet");
  assert.ok(Person.safeParse(met[0]).success);
  assert.equal(run.steps[0].toolResults[0].output, `Hello ${met[0].name}`);
  const stream = streamText(agent);
  for await (const part of stream.fullStream) if (part.type === "error") throw part.error;
  assert.equal((await stream.steps).length, 2);
  assert.equal(met.length, 2);
  const output = Output.object({ schema: Person });
  const typed = await generateText({ model, prompt: "hi", output, maxOutputTokens: 200, ...options });
  assert.ok(Person.safeParse(typed.output).success);
}

await openai();
const provider = createOpenAI({ baseURL: `${url}/v1`, apiKey: "none" });
await sdk(provider("small")); // the default: responses, which refer to items of earlier ones
await sdk(provider("small"), { providerOptions: { openai: { store: false } } });
await sdk(provider.chat("small"));
await sdk(createAnthropic({ baseURL: `${url}/v1`, apiKey: "none" })("small"));
console.log("done");
