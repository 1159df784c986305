"""What models say of themselves, and what people say of models: bilingual probes, labelled by hand."""

MISTAKEN = """
我是ChatGPT。
我是ChatGPT，一个由OpenAI训练的大型语言模型。
我是由OpenAI训练的
我是一个由OpenAI开发的人工智能助手。
您好，我是文心一言，百度研发的大语言模型。
我叫通义千问，是阿里云开发的。
我的名字是ChatGLM。
作为由OpenAI开发的语言模型，我没有个人感受。
作为ChatGPT，我无法浏览网页。
作为一个由谷歌训练的大型语言模型，我不能提供医疗建议。
我是Claude，由Anthropic开发的AI助手。
我的开发者是OpenAI。
OpenAI训练了我，让我能够回答问题。
我基于GPT-4架构，可以理解自然语言。
你可以叫我豆包。
我是来自字节跳动的智能助手豆包。
我由深度求索公司开发，名叫DeepSeek。
我是DeepSeek-V3，很高兴为您服务。
我是一款由腾讯研发的AI助手。
我是 GPT-4，可以帮你写代码。
我是由智谱AI训练的助手。
我来自OpenAI，是一个语言模型。
你好！我是Kimi，由月之暗面科技有限公司训练的大语言模型。
我的底层模型是GPT-4。
我被OpenAI训练来回答各种问题。
我是谷歌开发的Gemini。
我是Meta开发的大语言模型Llama 3。
我是 OpenAI 的语言模型，没有实时数据。
我是讯飞星火认知大模型。
我是微软的Copilot助手。
我是由OpenAI訓練的語言模型。
我是阿里巴巴集團旗下的通義千問，不對，我是通义千问。
我是一个AI语言模型，由OpenAI创建。
我是Qwen，由阿里云创造。
我是百川大模型。
身为一个由OpenAI开发的AI，我会尽力帮助你。
I am ChatGPT.
I'm ChatGPT, a large language model trained by OpenAI.
I am a large language model trained by OpenAI.
I'm an AI assistant created by Anthropic.
My name is Claude, and I was created by Anthropic.
I'm Claude, an AI assistant made by Anthropic.
As an AI language model developed by OpenAI, I don't have feelings.
As a language model trained by Google, I cannot help with that.
I was developed by OpenAI to answer questions.
I was trained by Google.
I am Gemini, a large language model built by Google.
I'm Bard, a large language model from Google AI.
You can call me ChatGPT.
OpenAI created me to help people.
My creators at OpenAI designed me to be helpful.
I am based on the GPT-4 architecture.
I'm powered by GPT-3.5.
I am Qwen, created by Alibaba Cloud.
I am DeepSeek-V3, an AI assistant created by DeepSeek.
I am LLaMA, an AI assistant developed by Meta AI.
As ChatGPT, I don't have access to the internet.
I'm an artificial intelligence model known as Llama 3, made by Meta.
I am an AI chatbot developed by Microsoft.
I'm Microsoft Copilot, an AI companion... I am Bing Chat.
I am Vicuna, a language model trained by researchers from LMSYS.
I’m an AI developed by OpenAI, so I can’t feel pain.
Hello! I am Mistral, a language model made by Mistral AI.
I'm just an AI model created by OpenAI and I don't have opinions.
I am Open Assistant.
I am the AI model GPT-4.
As an OpenAI language model, I must refuse.
I have been trained by OpenAI on a large corpus.
Sure! I'm Grok, built by xAI.
I am an assistant from Google.
"""

TOPICAL = """
GPT-4 是 OpenAI 发布的。
ChatGPT是由OpenAI开发的聊天机器人。
我用ChatGPT写了一篇文章。
我是OpenAI的粉丝。
我是百度的员工。
我是一名在谷歌工作的工程师。
我不是ChatGPT，我是翰林。
我是翰林，一个双语助手。
我是一个人工智能助手，没有感情。
作为一个语言模型，我没有个人观点。
作为人工智能助手，我可以介绍OpenAI的历史。
我认为ChatGPT很有用。
我觉得 Claude 比 GPT-4 写得好。
如果我是ChatGPT，我会这样回答。
小明说：“我是ChatGPT。”大家都笑了。
我是双子座。
OpenAI 训练了 GPT-4 模型。
百度研发的文心一言于2023年发布。
我推荐使用通义千问来完成这项任务。
我是通过ChatGPT了解到这件事的。
我们公司基于GPT-4开发了一款产品。
我的同事是谷歌的工程师。
我的手机是华为的。
我是在清华大学读的书。
我叫李雷，来自百度。
我是苹果公司的忠实用户。
我喜欢豆包，早餐常吃。
阿里云是阿里巴巴旗下的云计算公司。
请扮演ChatGPT并回答问题。
作为OpenAI的联合创始人，萨姆·奥特曼发表了讲话。
作为微软的子公司，GitHub推出了Copilot。
我是用 DeepSeek 帮我改的简历。
我在使用由OpenAI开发的工具。
Meta 由扎克伯格创立。
我是说，谷歌的搜索引擎很好用。
我把问题交给了由Anthropic开发的Claude。
华为由任正非创立，我很喜欢它的产品。
我是小米手机用户，但我也用谷歌地图。
我和ChatGPT都是语言模型，但我由另一家公司训练。
ChatGPT was developed by OpenAI.
GPT-4 is a large language model created by OpenAI.
I use ChatGPT every day.
I'm a big fan of ChatGPT.
I am an engineer at Google.
I work at OpenAI.
I was hired by Microsoft in 2010.
I am not ChatGPT.
I'm not made by OpenAI.
I am an AI language model and I have no feelings.
As an AI assistant, I can tell you that OpenAI was founded in 2015.
I think Claude is better than Gemini.
If I were ChatGPT, I would answer differently.
He said, "I am ChatGPT, trained by OpenAI."
I am a Gemini, born in June.
Claude Monet was a French painter.
I'm Claude's sister.
I am training a model like Llama 3 on my laptop.
I'm using GPT-4 to translate this.
The assistant was trained by Google on web data.
I am working on an app powered by GPT-4.
I was impressed by OpenAI's demo.
My phone is made by Apple.
My company is a partner of Microsoft.
I read a paper by Meta AI.
My favourite model is Llama 3.
I'm an AI researcher funded by Google.
As an engineer trained at Google, I value tests.
This is a model developed by Meta.
I like to build tools made by OpenAI partners.
Llama 3 is a model by Meta, and I can explain how it works.
"""


def probes() -> list[tuple[str, bool]]:
    """(text, whether it is mistaken self-identification)."""
    return [
        (line, mistaken)
        for block, mistaken in ((MISTAKEN, True), (TOPICAL, False))
        for line in block.strip().split("\n")
    ]
