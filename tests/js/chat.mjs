// An unmodified OpenAI client: everything it needs is in its own environment variables. Prints one JSON object.
import OpenAI from "openai";

const model = "gpuops-demo";
const messages = [{ role: "user", content: process.env.QUESTION }];
const client = new OpenAI();

async function errorOf(promise) {
  try {
    await promise;
    return "no error";
  } catch (error) {
    return error.constructor.name;
  }
}

const whole = await client.chat.completions.create({ model, messages, temperature: 0 });
let streamed = "";
let events = 0;
for await (const event of await client.chat.completions.create({ model, messages, temperature: 0, stream: true })) {
  const words = event.choices[0]?.delta?.content;
  if (words) {
    streamed += words;
    events += 1;
  }
}
console.log(
  JSON.stringify({
    answer: whole.choices[0].message.content,
    streamed,
    events,
    unknown: await errorOf(client.chat.completions.create({ model: "no-such-model", messages })),
    wrong_key: await errorOf(new OpenAI({ apiKey: "wrong" }).models.list()),
  }),
);
